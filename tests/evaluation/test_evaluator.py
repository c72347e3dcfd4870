"""From replies to measurements, with the real engine and the real sandbox."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cqd_hub.errors import RunError
from cqd_hub.evaluation.engine import Candidate
from cqd_hub.evaluation.engine.sequential import SequentialEngine
from cqd_hub.evaluation.evaluator import Evaluation, Evaluator
from cqd_hub.evaluation.sandbox import (
    Limits,
    Outcome,
    Program,
    Sandbox,
    SandboxFailure,
    available,
    open_sandbox,
)
from cqd_hub.evaluation.skill import Judged
from cqd_hub.evaluation.skills import load_skills
from cqd_hub.genome import Basis, Genome
from tests.evaluation.toy_tasks import choosing, generating, recipe, three_splits

pytestmark = pytest.mark.skipif(
    not any(state.ok for state in available() if state.kind != "docker"),
    reason="no sandbox works here",
)


class Counting:
    """The real sandbox; counts what it runs, and fails when told to."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.kind, self.guarantees, self._sandbox = sandbox.kind, sandbox.guarantees, sandbox
        self.texts: list[str] = []
        self.failing: Callable[[str], bool] = lambda text: False

    async def run(self, program: Program, limits: Limits = Limits()) -> Outcome:  # noqa: B008
        text = program.query if hasattr(program, "query") else str(program)
        self.texts.append(text)
        if self.failing(text):
            raise SandboxFailure("no core for it", where="sandbox")
        return await self._sandbox.run(program, limits)


def run(folder: Path, basis: Basis, work: Callable[[Evaluator, Counting, Candidate], Any]) -> Any:
    documents = {
        split: [
            {
                **row,
                "schema": "CREATE TABLE t(a);",
                "expected": {"rows": []},
                # What a filter of the task says in the model's place: every other one is right.
                "say": "SELECT a FROM t" if n % 2 else f"SELECT {n}",
            }
            for n, row in enumerate(rows)
        ]
        for split, rows in three_splits(4).items()
    }
    generating(
        folder,
        name="queries",
        documents=documents,
        metadata={"execution": "sql"},
        filter_list=[
            {
                "name": "say",
                "filter": [
                    {"function": "custom", "filter_fn": "PLACE"},
                    {"function": "take_first"},
                ],
            }
        ],
    )
    path = folder / "queries.yaml"
    path.write_text(path.read_text().replace("PLACE", "!function tools.say"))
    (folder / "tools.py").write_text(
        "def say(resps, docs):\n"
        "    return [[doc['say'] for _ in r] for r, doc in zip(resps, docs)]\n"
    )
    choosing(folder)
    engine = SequentialEngine(basis, device="cpu", dtype=torch.float32)
    skills = load_skills(recipe("queries", "pick:acc"), folder, engine.tokenizer)

    async def go() -> Any:
        async with await open_sandbox(workers=1) as sandbox, engine:
            counting = Counting(sandbox)
            candidate = Candidate(5, Genome.of_expert(basis.hash, basis.layout, 1))
            return await work(Evaluator(engine, skills, counting), counting, candidate)

    return asyncio.run(go())


def test_every_measurement_is_whole(tmp_path: Path, basis: Basis) -> None:
    async def work(evaluator: Evaluator, sandbox: Counting, candidate: Candidate) -> None:
        evaluation = await evaluator.evaluate(candidate, "validation")
        assert len(evaluation.measurements) == 4 + 6
        for one in evaluation.measurements:
            assert (one.split, one.repeat) == ("validation", 0)
            assert one.sample.startswith("validation:")
            if one.skill == "one":
                right = int(one.sample[-1]) % 2 == 1
                assert one.score == right
                assert one.note == ("" if right else "wrong result")
                assert one.text == ("SELECT a FROM t" if right else f"SELECT {one.sample[-1]}")
                assert one.path == f"sequential/float32/cpu+{sandbox.kind}"
                assert one.tokens
                assert one.finish in ("stop", "length")
            else:
                assert one.path == "sequential/float32/cpu"
                assert one.text in ("0", "1", "2")  # the likeliest choice
                label = int(one.sample.split(":")[1]) % 3
                assert one.score == float(int(one.text) == label)
                assert (one.finish, one.tokens, one.note) == ("scored", (), "")
        assert evaluation.scores()["one"] == 0.5
        assert evaluation.seconds > 0
        assert 0 < evaluator.execute_seconds <= evaluation.seconds
        assert evaluator.executed == len(sandbox.texts) == 4
        only = await evaluator.evaluate(candidate, "test", ["two"])
        assert {one.skill for one in only.measurements} == {"two"}

    run(tmp_path, basis, work)


def test_what_generating_took_is_counted(tmp_path: Path, basis: Basis) -> None:
    async def work(evaluator: Evaluator, sandbox: Counting, candidate: Candidate) -> None:
        plain = await evaluator.evaluate(candidate, "validation")
        said = [one.tokens for one in plain.measurements if one.tokens]
        assert plain.generated.answers == len(said) == 4  # choices are scored, not generated
        assert plain.generated.tokens == sum(map(len, said))
        assert plain.generated.drafted == 0
        assert plain.generated.passes == plain.generated.tokens
        evaluator.answers = lambda individual, split: plain.measurements
        twin = Candidate(candidate.id + 1, candidate.genome)
        drafted = await evaluator.evaluate(twin, "validation", parents=[candidate.id])
        # Each answer whole in the pass that reads its prompt, which gives one token itself.
        assert drafted.generated.passes == 4
        assert drafted.generated.tokens == plain.generated.tokens
        assert drafted.generated.drafted == plain.generated.tokens - 4

    run(tmp_path, basis, work)


def test_a_verdict_is_never_executed_twice(tmp_path: Path, basis: Basis) -> None:
    async def work(evaluator: Evaluator, sandbox: Counting, candidate: Candidate) -> None:
        first = await evaluator.evaluate(candidate, "test")
        assert len(sandbox.texts) == 4
        again = await evaluator.evaluate(candidate, "test")
        assert len(sandbox.texts) == 4
        assert (evaluator.executed, evaluator.verdicts.reused) == (4, 4)
        assert _facts(again) == _facts(first)
        # Another evaluator that is told the journal's verdicts executes nothing either.
        fresh = Evaluator(evaluator.engine, evaluator.skills, sandbox)
        for one in first.measurements:
            fresh.verdicts.remember(one.skill, one.sample, one.text, one.score, one.note)
        assert _facts(await fresh.evaluate(candidate, "test")) == _facts(first)
        assert len(sandbox.texts) == 4
        await fresh.evaluate(candidate, "validation")  # the same texts, other samples
        assert len(sandbox.texts) == 8

    run(tmp_path, basis, work)


def test_an_infrastructure_failure_is_raised_and_not_remembered(
    tmp_path: Path, basis: Basis
) -> None:
    async def work(evaluator: Evaluator, sandbox: Counting, candidate: Candidate) -> None:
        sandbox.failing = lambda text: text == "SELECT 2"
        with pytest.raises(RunError, match="no core for it"):
            await evaluator.evaluate(candidate, "test")
        assert not [task for task in asyncio.all_tasks() if "_measure" in repr(task)]
        judged = evaluator.executed
        assert judged < 4
        sandbox.failing = lambda text: False
        sandbox.texts.clear()
        evaluation = await evaluator.evaluate(candidate, "test")
        assert "SELECT 2" in sandbox.texts
        assert len(sandbox.texts) == 4 - judged  # only what has no verdict yet
        assert evaluation.scores()["one"] == 0.5

    run(tmp_path, basis, work)


def test_weights_that_are_no_numbers_score_nothing(tmp_path: Path, basis: Basis) -> None:
    async def work(evaluator: Evaluator, sandbox: Counting, candidate: Candidate) -> None:
        genome = candidate.genome
        broken = Genome(genome.basis, genome.coefficients * np.float32(np.nan))
        found = await evaluator.evaluate(Candidate(7, broken), "test")
        assert {(one.score, one.finish) for one in found.measurements} == {(0.0, "nan")}
        assert {one.note for one in found.measurements} == {
            "the individual gives no finite numbers"
        }
        assert sandbox.texts == []
        for one in found.measurements:
            evaluator.recall(Judged(one.skill, one.sample, one.text, one.finish, 0.0, one.note))
        assert (await evaluator.evaluate(candidate, "test")).scores()["one"] == 0.5

    run(tmp_path, basis, work)


def test_a_prompt_that_does_not_fit_ends_the_evaluation_cleanly(
    tmp_path: Path, basis: Basis
) -> None:
    documents = three_splits()
    documents["test"][2]["question"] = "x" * 300
    generating(tmp_path, documents=documents)
    engine = SequentialEngine(basis, device="cpu", dtype=torch.float32)
    made = recipe("sums:exact_match", "sums:exact_match")
    skills = load_skills(made, tmp_path, engine.tokenizer)
    complaints: list[dict[str, Any]] = []

    async def go() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, c: complaints.append(c))
        async with engine:
            evaluator = Evaluator(engine, skills, None)
            candidate = Candidate(0, Genome.of_base(basis.hash, basis.layout))
            with pytest.raises(Exception, match="tokens, the model holds 256"):
                await evaluator.evaluate(candidate, "test")
            assert len((await evaluator.evaluate(candidate, "validation")).measurements) == 12

    asyncio.run(go())
    assert not complaints, json.dumps(complaints, default=str)


def _facts(evaluation: Evaluation) -> list[tuple[Any, ...]]:
    return [(m.skill, m.sample, m.text, m.tokens, m.score) for m in evaluation.measurements]
