"""Where an environment is repeatable, no turn is executed twice: not in a run, not after a stop."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cqd_hub.evaluation.engine import Candidate
from cqd_hub.evaluation.evaluator import Evaluation, Evaluator
from cqd_hub.evaluation.skill import Judged
from cqd_hub.genome import Basis
from tests.evaluation.episodes.common import log, manifest, play


def facts(evaluation: Evaluation) -> list[tuple[object, ...]]:
    return [
        (m.sample, m.text, m.tokens, m.score, m.finish, m.note) for m in evaluation.measurements
    ]


def judged(evaluation: Evaluation) -> list[Judged]:
    return [
        Judged(m.skill, m.sample, m.text, m.finish, m.score, m.note)
        for m in evaluation.measurements
    ]


async def both(evaluator: Evaluator, candidates: list[Candidate]) -> list[Evaluation]:
    return [await evaluator.evaluate(candidates[n], "test", ["one"]) for n in (1, 1, 2)]


def test_a_turn_is_executed_once(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path)
    plain = play(tmp_path, basis, both)
    executed = len(log(tmp_path, "step"))
    (tmp_path / "log.txt").unlink()
    manifest(tmp_path, "Remembered")

    async def counted(evaluator: Evaluator, candidates: list[Candidate]) -> list[Evaluation]:
        found = await both(evaluator, candidates)
        steps = log(tmp_path, "step")
        assert evaluator.executed == len(steps)
        assert evaluator.verdicts.reused >= len(found[0].measurements)
        return found

    remembered = play(tmp_path, basis, counted)
    assert [facts(one) for one in remembered] == [facts(one) for one in plain]
    # The second evaluation of the same individual executes nothing.
    per_first = sum(len(m.text.split('"reply"')) - 1 for m in plain[0].measurements)
    assert len(log(tmp_path, "step")) <= executed - per_first
    (tmp_path / "log.txt").unlink()


def test_at_the_same_time_too(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path, "Remembered", options={"live": 2})

    async def together(evaluator: Evaluator, candidates: list[Candidate]) -> list[Evaluation]:
        same = [candidates[1], candidates[1]._replace(id=9), candidates[1]._replace(id=10)]
        return await asyncio.gather(*(evaluator.evaluate(one, "test", ["one"]) for one in same))

    found = play(tmp_path, basis, together)
    assert facts(found[0]) == facts(found[1]) == facts(found[2])
    steps = log(tmp_path, "step")
    assert len(steps) == sum(len(m.text.split('"reply"')) - 1 for m in found[0].measurements)


def test_after_a_stop_the_journal_is_enough(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path, "Remembered", options={"fault": "test-2", "faulty": "keep"})
    first = play(tmp_path, basis, both)
    (tmp_path / "log.txt").unlink()

    async def resumed(evaluator: Evaluator, candidates: list[Candidate]) -> list[Evaluation]:
        for evaluation in first[:2]:
            for one in judged(evaluation):
                evaluator.recall(one)
        assert evaluator.executed == 0
        again = await evaluator.evaluate(candidates[1], "test", ["one"])
        assert log(tmp_path, "step") == log(tmp_path, "end") == []
        return [again, await evaluator.evaluate(candidates[2], "test", ["one"])]

    assert [facts(one) for one in play(tmp_path, basis, resumed)] == [
        facts(one) for one in first[1:]
    ]
    # Where a new reply followed known ones, those were replayed in the real episode first.
    assert log(tmp_path, "step")


def test_what_is_not_repeatable_is_played_again(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path)
    play(tmp_path, basis, both)
    begun = log(tmp_path, "begin")
    assert len(begun) == 3 * 6


def test_a_reply_that_is_an_exception_is_played_again(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path)
    plain = play(tmp_path, basis, both)
    executed = log(tmp_path, "step")
    (tmp_path / "log.txt").unlink()
    manifest(tmp_path, "Forgetful")

    async def resumed(evaluator: Evaluator, candidates: list[Candidate]) -> list[Evaluation]:
        for one in judged(plain[0]):
            evaluator.recall(one)
        return await both(evaluator, candidates)

    assert [facts(one) for one in play(tmp_path, basis, resumed)] == [facts(one) for one in plain]
    assert sorted(log(tmp_path, "step")) == sorted(executed)
