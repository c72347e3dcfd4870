"""Episodes with a real model: what is said and seen, and how they end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.engine import Candidate
from cqd_hub.evaluation.engine.population import PopulationEngine
from cqd_hub.evaluation.evaluator import Evaluation, Evaluator
from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.evaluation.skill import Judged
from cqd_hub.genome import Basis, Genome, mutate_gaussian
from tests.evaluation.episodes.common import log, manifest, play


async def on_test(evaluator: Evaluator, candidates: list[Candidate]) -> Evaluation:
    return await evaluator.evaluate(candidates[1], "test", ["one"])


def turns(measurement: Measurement) -> list[dict[str, Any]]:
    return json.loads(measurement.text)


def test_a_dialogue_from_question_to_verdict(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path)
    found = play(tmp_path, basis, on_test)
    assert [one.sample for one in found.measurements] == [f"test-{n}" for n in range(6)]
    endings = set()
    for one in found.measurements:
        said = turns(one)
        letters = sum(len(turn["reply"]) for turn in said)
        assert sum(turn["tokens"] for turn in said) == len(one.tokens) > 0
        assert one.path == "sequential/float32/cpu+letters/v1"
        assert one.repeat == 0
        for turn in said[:-1]:
            assert turn["seen"] == f"that is {len(turn['reply'])} letters"
        endings.add(one.finish)
        if one.finish == "completed":
            assert "seen" not in said[-1]
            assert (one.score, one.note) == (letters % 7 / 6, f"{letters} letters")
        else:
            assert one.finish == "task limit reached"
            assert len(said) == 3
            assert said[-1]["seen"].startswith("that is ")
            assert one.score == letters % 5 / 4
    assert endings == {"completed", "task limit reached"}
    assert found.scores()["one"] == sum(m.score for m in found.measurements) / 6


@pytest.mark.parametrize(
    ("alone", "path"),
    [
        ((False, False), "population/float32/cpu"),
        ((True, True), "sequential/float32/cpu"),
        ((False, True), "population/float32/cpu,sequential/float32/cpu"),
    ],
)
def test_the_path_is_that_of_the_replies(
    tmp_path: Path, basis: Basis, alone: tuple[bool, bool], path: str
) -> None:
    manifest(tmp_path, options={"verdict": "never"})
    engine = PopulationEngine(basis, device="cpu", dtype=torch.float32)
    submit, begun = engine.submit, list[tuple[int, ...]]()

    def sending(candidate: Candidate, request: Any) -> Any:
        later = any(request.prompt[: len(opening)] == opening for opening in begun)
        if not later:
            begun.append(request.prompt)
        return submit(candidate, request, alone=alone[later])

    engine.submit = sending  # type: ignore[method-assign]

    async def work(evaluator: Evaluator, candidates: list[Candidate]) -> Evaluation:
        return await evaluator.evaluate(candidates[1], "optimisation", ["one"])

    found = play(tmp_path, basis, work, engine=engine).measurements
    assert {len(turns(one)) for one in found} == {3}
    assert {one.path for one in found} == {f"{path}+letters/v1"}


def test_who_cannot_share_a_batch_plays_alone_and_says_so(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path)
    engine = PopulationEngine(basis, device="cpu", dtype=torch.float32)

    async def work(evaluator: Evaluator, candidates: list[Candidate]) -> Evaluation:
        noisy = mutate_gaussian(candidates[1].genome, seed=1, deviation=0.01, basis=basis)
        return await evaluator.evaluate(Candidate(7, noisy), "optimisation", ["one"])

    found = play(tmp_path, basis, work, engine=engine).measurements
    assert {one.path for one in found} == {"sequential/float32/cpu+letters/v1"}


def test_every_episode_is_closed_whatever_happens(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path, options={"fail": "step:test-3:9"})

    async def work(evaluator: Evaluator, candidates: list[Candidate]) -> None:
        with pytest.raises(RunError, match="the machine of test-3 died"):
            await evaluator.evaluate(candidates[0], "test", ["one"])

    play(tmp_path, basis, work)
    begun = [line.split()[1] for line in log(tmp_path, "begin")]
    closed = [line.split()[1] for line in log(tmp_path, "close") if line != "close"]
    assert sorted(begun) == sorted(closed)
    assert log(tmp_path)[-1] == "close"


@pytest.mark.parametrize("place", ["begin", "step"])
def test_a_lost_machine_costs_nothing(tmp_path: Path, basis: Basis, place: str) -> None:
    manifest(tmp_path)
    whole = play(tmp_path, basis, on_test).measurements
    (tmp_path / "log.txt").unlink()
    asked: list[int] = []

    async def work(evaluator: Evaluator, candidates: list[Candidate]) -> Evaluation:
        submit = evaluator.engine.submit

        def counting(*arguments: Any) -> Any:
            asked.append(1)
            return submit(*arguments)

        evaluator.engine.submit = counting  # type: ignore[method-assign]
        return await on_test(evaluator, candidates)

    manifest(tmp_path, options={"fail": f"{place}:test-2:1"})
    assert play(tmp_path, basis, work).measurements == whole
    assert len(log(tmp_path, "begin test-2")) == 2
    assert len(asked) == sum(len(turns(one)) for one in whole)  # no answer was made twice


def test_two_plays_lost_by_one_individual_are_judged_by_the_environment(
    tmp_path: Path, basis: Basis
) -> None:
    manifest(tmp_path)
    whole = play(tmp_path, basis, on_test).measurements
    (tmp_path / "log.txt").unlink()
    manifest(tmp_path, options={"fail": "step:test-2:2", "blame": True})
    found = play(tmp_path, basis, on_test).measurements
    assert log(tmp_path, "lost") == ["lost test-2 the machine of test-2 died"]
    assert [one for one in found if one.sample != "test-2"] == [
        one for one in whole if one.sample != "test-2"
    ]
    (one,) = (one for one in found if one.sample == "test-2")
    assert (one.score, one.finish) == (0, "its own doing")
    (said,) = turns(one)  # what was said when the machine went
    (before,) = (turns(one)[0] for one in whole if one.sample == "test-2")
    assert said == {"reply": before["reply"], "tokens": before["tokens"]}


def test_losses_of_two_individuals_are_not_added_up(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path, options={"fail": "step:test-2:1", "blame": True})

    async def work(evaluator: Evaluator, candidates: list[Candidate]) -> list[Evaluation]:
        found = []
        for candidate in candidates[:2]:
            evaluator.skills["one"]._environment.failures.clear()  # type: ignore[attr-defined]
            found.append(await evaluator.evaluate(candidate, "test", ["one"]))
        return found

    found = play(tmp_path, basis, work)
    assert all(one.finish != "its own doing" for each in found for one in each.measurements)
    assert log(tmp_path, "lost") == []
    assert len(log(tmp_path, "begin test-2")) == 4


def test_an_environments_own_mistake_is_one_line(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path, "Broken")
    says = r"skills\.one\.task: the environment failed on sample test-0: KeyError: 'no such thing'"
    with pytest.raises(RunError, match=says):
        play(tmp_path, basis, on_test)


def test_a_full_context_ends_an_episode(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path, max_new_tokens=100, options={"verdict": "never"})
    found = play(tmp_path, basis, on_test).measurements
    full = [one for one in found if one.finish == "agent context limit"]
    assert full
    for one in full:
        assert 1 <= len(turns(one)) < 3
        assert "tokens, the model holds 256" in one.note
        assert one.score == sum(len(turn["reply"]) for turn in turns(one)) % 5 / 4
        assert f"end {one.sample} agent context limit" in log(tmp_path, "end")


def test_replies_longer_than_the_context_are_refused_at_once(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path, max_new_tokens=256)
    with pytest.raises(UserError, match=r"skills\.one\.task: max_new_tokens: .*257 tokens"):
        play(tmp_path, basis, on_test)
    assert log(tmp_path, "begin") == []


def test_repeats_differ_where_drawn_and_are_recorded_apart(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path, repeats=3, temperature=1.0, top_p=0.95)
    found = play(tmp_path, basis, on_test).measurements
    assert [one.repeat for one in found if one.sample == "test-1"] == [0, 1, 2]
    assert len({one.text for one in found if one.sample == "test-1"}) > 1
    assert play(tmp_path, basis, on_test).measurements == found


def test_stop_and_prefill(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path, stop=["e", "a"], prefill="I say: ")
    found = play(tmp_path, basis, on_test).measurements
    replies = [turn["reply"] for one in found for turn in turns(one)]
    assert not any("e" in reply or "a" in reply for reply in replies)
    assert [json.loads(line.split(" ", 2)[2]) for line in log(tmp_path, "step")] != []
    for line in log(tmp_path, "step"):
        assert json.loads(line.split(" ", 2)[2]).startswith("I say: ")


def test_a_slow_episode_does_not_stop_the_others(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path, options={"slow": "test-0"})
    assert len(play(tmp_path, basis, on_test).measurements) == 6
    closed = log(tmp_path, "close ")
    assert closed[-1] == "close test-0"


def test_weights_that_are_no_numbers_score_nothing(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path, "Remembered")

    async def work(evaluator: Evaluator, candidates: list[Candidate]) -> None:
        genome = candidates[1].genome
        broken = Genome(genome.basis, genome.coefficients * np.float32(np.nan))
        found = await evaluator.evaluate(Candidate(7, broken), "test", ["one"])
        for one in found.measurements:
            assert (one.score, one.finish, one.text) == (0.0, "nan", "[]")
            assert one.note == "the individual gives no finite numbers"
            judged = Judged("one", one.sample, one.text, one.finish, one.score, one.note)
            evaluator.recall(judged)
        after = await on_test(evaluator, candidates)
        assert {one.finish for one in after.measurements} == {"completed", "task limit reached"}

    play(tmp_path, basis, work)


def test_no_more_live_at_once_than_the_environment_allows(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path, options={"live": 2, "count": 7})
    most: list[int] = []

    async def work(evaluator: Evaluator, candidates: list[Candidate]) -> None:
        environment = evaluator.skills["one"]._environment  # type: ignore[attr-defined]
        await evaluator.evaluate(candidates[0], "test", ["one"])
        most.append(environment.most)

    play(tmp_path, basis, work)
    assert most == [2]


def test_faulty_samples_are_named_and_left_out_or_kept(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path, options={"fault": "test-1"})
    notes: list[str] = []
    found = play(tmp_path, basis, on_test, notes=notes).measurements
    assert [one.sample for one in found] == [f"test-{n}" for n in (0, 2, 3, 4, 5)]
    line = "skills.one: left out of test, known to be faulty: test-1: known to be odd"
    assert line in notes
    kept = play(tmp_path, basis, on_test, options={"faulty": "keep"}).measurements
    assert [one.note.startswith("known fault: known to be odd; ") for one in kept] == [
        one.sample == "test-1" for one in kept
    ]


def test_what_parents_said_is_offered_as_drafts(tmp_path: Path, basis: Basis) -> None:
    manifest(tmp_path, options={"verdict": "never"})
    drafts: list[tuple[int, Any, Any]] = []

    async def work(evaluator: Evaluator, candidates: list[Candidate]) -> None:
        parents = {n: await evaluator.evaluate(candidates[n], "test", ["one"]) for n in (1, 2)}
        plain = await evaluator.evaluate(candidates[3], "test", ["one"])
        evaluator.answers = lambda number, split: parents[number].measurements
        submit = evaluator.engine.submit

        def watching(candidate: Candidate, request: Any) -> Any:
            drafts.append((request.prompt, request.drafts, None))
            return submit(candidate, request)

        evaluator.engine.submit = watching  # type: ignore[method-assign]
        again = await evaluator.evaluate(candidates[3], "test", ["one"], parents=[1, 2])
        assert again.measurements == plain.measurements
        firsts = {
            one.tokens[: turns(one)[0]["tokens"]]
            for parent in parents.values()
            for one in parent.measurements
        }
        offered = [found for _, found, _ in drafts]
        assert {tokens for found in offered[:6] for tokens in found} == firsts
        # Later turns get a draft only where a parent had seen the same.
        seen = {
            tuple(turn["seen"] for turn in turns(one)[:-1])
            for parent in parents.values()
            for one in parent.measurements
        }
        expected = sum(
            any(
                tuple(turn["seen"] for turn in turns(one)[:place])
                == tuple(turn["seen"] for turn in turns(other)[:place])
                for parent in parents.values()
                for other in parent.measurements
                if other.sample == one.sample
            )
            for one in again.measurements
            for place in range(3)
        )
        assert seen
        assert sum(bool(found) for found in offered) == expected

    play(tmp_path, basis, work)
