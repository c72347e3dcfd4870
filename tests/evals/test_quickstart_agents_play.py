"""The dialogues of the agents' quickstart, played in the real environments."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cqd_hub.assets import folder
from cqd_hub.errors import UserError
from cqd_hub.evaluation.episodes import (
    Environment,
    Message,
    Observation,
    Resources,
    Sample,
    Verdict,
)
from cqd_hub.evaluation.episodes.manifest import find_manifest, load_manifest
from cqd_hub.evaluation.sandbox import Sandbox, open_sandbox
from cqd_hub.recipe.schema import Evaluation

from .agents import SPLITS, problems

T = TypeVar("T")
MACHINE = os.environ.get("CQD_HUB_TEST_MACHINE")


def within(
    skill: str, options: dict[str, Any], work: Callable[[Environment, list[Sample]], Awaitable[T]]
) -> T:
    """Let *work* use the open environment of a skill and its samples."""
    if skill == "os" and MACHINE:
        options = options | {"image": MACHINE}
    found = find_manifest(f"quickstart_agents_{skill}", [folder("evals")], Path(), "test")
    assert found is not None
    environment = load_manifest(*found, options, Path(), "test").environment

    async def go() -> T:
        async with contextlib.AsyncExitStack() as stack:

            async def sandbox() -> Sandbox:
                return await stack.enter_async_context(await open_sandbox())

            stack.push_async_callback(environment.close)
            await environment.open(Resources(Evaluation(), sandbox, lambda line: None))
            (samples,) = environment.samples().values()
            return await work(environment, list(samples))

    try:
        return asyncio.run(go())
    except UserError as error:
        if skill != "os" and options.get("engine") != "mariadb":
            raise
        pytest.skip(str(error))


async def play(environment: Environment, sample: Sample, problem: Any) -> Verdict:
    """Give the dialogue's replies; the environment must say what the dialogue says it does."""
    episode = await environment.begin(sample)
    try:
        assert [message.content for message in episode.opening] == [problem.opening]
        for reply, seen in problem.turns:
            turn = await episode.step(Message("assistant", reply))
            assert isinstance(turn, Observation), turn
            assert [message.content for message in turn.messages] == [seen]
        verdict = await episode.step(Message("assistant", problem.last))
        assert isinstance(verdict, Verdict), verdict
        return verdict
    finally:
        await episode.close()


async def say(environment: Environment, sample: Sample, reply: str) -> Verdict:
    """Give one reply again and again."""
    episode = await environment.begin(sample)
    try:
        for _ in range(environment.rounds):
            turn = await episode.step(Message("assistant", reply))
            if isinstance(turn, Verdict):
                return turn
        return await episode.end("")
    finally:
        await episode.close()


def every(skill: str) -> list[Any]:
    return [problem for split in SPLITS for _, problem in problems(skill, split)]


@pytest.mark.parametrize(
    ("skill", "options"),
    [
        ("coding", {}),
        ("db", {"engine": "sqlite"}),
        pytest.param("db", {"engine": "mariadb"}, marks=pytest.mark.slow),
        pytest.param("os", {}, marks=pytest.mark.slow),
    ],
)
def test_gold_dialogues_pass_and_meet_what_they_expect(skill: str, options: dict) -> None:
    async def work(environment: Environment, samples: list[Sample]) -> list[Verdict]:
        made = every(skill)
        assert len(made) == len(samples)
        gate = asyncio.Semaphore(4)

        async def one(sample: Sample, problem: Any) -> Verdict:
            async with gate:
                return await play(environment, sample, problem)

        return await asyncio.gather(*map(one, samples, made))

    verdicts = within(skill, options, work)
    assert [verdict for verdict in verdicts if verdict.score != 1] == []


LAZY = {
    "coding": ["", "def f(x): return x"],
    "os": ["Act: finish", "Act: answer(0)"],
    "db": ["", 'Action: Answer\nFinal Answer: ["done"]'],
}


@pytest.mark.parametrize("skill", ["coding", "os", "db"])
def test_doing_nothing_fails(skill: str) -> None:
    async def work(environment: Environment, samples: list[Sample]) -> list[Verdict]:
        chosen = samples[:: 8 if skill == "os" else 16]
        return [await say(environment, sample, reply) for sample in chosen for reply in LAZY[skill]]

    assert [verdict.score for verdict in within(skill, {}, work) if verdict.score] == []


def test_one_os_problem_of_each_kind_passes() -> None:
    async def work(environment: Environment, samples: list[Sample]) -> list[Verdict]:
        kinds = {}
        for sample, problem in zip(samples, every("os"), strict=True):
            kinds.setdefault((len(problem.turns), *problem.record["labels"]), (sample, problem))
        return [await play(environment, *one) for one in kinds.values()]

    verdicts = within("os", {}, work)
    assert [verdict for verdict in verdicts if verdict.score != 1] == []
