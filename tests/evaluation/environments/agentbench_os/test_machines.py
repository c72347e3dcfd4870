"""On real machines: our own samples, and the public files where they are."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cqd_hub.errors import UserError
from cqd_hub.evaluation.environments.agentbench_os.problem import Problem
from cqd_hub.evaluation.environments.agentbench_os.stock import name_of
from cqd_hub.evaluation.episodes import Sample, Verdict
from cqd_hub.evaluation.machines import open_machines
from tests.evaluation.environments.agentbench_os.gold import (
    opened,
    play_all,
    play_gold,
    play_nothing,
)

HERE = Path(__file__).parent
REAL = Path(__file__).parents[5] / "shared" / "data" / "agentbench" / "os_interaction"
Choice = Callable[[Mapping[str, Sequence[Sample]]], list[Sample]]
PER_CHECK = {"integer-match": 80, "string-match": 12, "size-match": 8}


def public_files(folder: Path) -> Path:
    """The public files, with stand-ins of our own for the scripts that are not among them."""
    if not REAL.is_dir():
        pytest.skip(f"AgentBench's public files are not in {REAL}")
    shutil.copytree(REAL, folder / "data")
    shutil.copytree(HERE / "scripts", folder / "data" / "scripts")
    return folder / "data"


class Kind(NamedTuple):
    """A kind of machines, and its image."""

    name: str
    image: str


@pytest.fixture(scope="module", params=["bubblewrap", "docker"])
def machines(request: pytest.FixtureRequest) -> Kind:
    """Every kind that can be had here, with the image that the environment names, if it does."""
    variable = "CQD_HUB_TEST_MACHINE" + ("_DOCKER" if request.param == "docker" else "")
    kind = Kind(request.param, os.environ.get(variable, ""))

    async def attempt() -> None:
        await (await open_machines(kind.name, image=kind.image or None)).close()

    try:
        asyncio.run(attempt())
    except UserError as error:
        pytest.skip(f"{kind.name} machines: {error.what} (an image may be named in {variable})")
    return kind


def play(
    data: Path, kind: Kind, choose: Choice, play: Any = play_gold, **options: Any
) -> tuple[dict[str, Verdict], dict[str, str]]:
    """Verdicts, and the known faults of the samples played, by id."""

    async def run() -> tuple[dict[str, Verdict], dict[str, str]]:
        given = {"data": str(data), "machines": kind.name, "image": kind.image or None, **options}
        environment = await opened(given, [].append)
        try:
            assert environment.kind.rpartition("/")[2].startswith(f"{kind.name}-")
            samples = environment.samples()
            chosen = choose(samples)
            verdicts = await play_all(environment, chosen, play, at_once=2)
            return verdicts, {one.id: one.fault for one in chosen if one.fault}
        finally:
            await environment.close()

    return asyncio.run(run())


def failing(verdicts: dict[str, Verdict]) -> dict[str, Verdict]:
    return {name: verdict for name, verdict in verdicts.items() if not verdict.score}


def passing(verdicts: dict[str, Verdict]) -> dict[str, Verdict]:
    return {name: verdict for name, verdict in verdicts.items() if verdict.score}


def everything(samples: Mapping[str, Sequence[Sample]]) -> list[Sample]:
    return [one for group in samples.values() for one in group]


def dev(samples: Mapping[str, Sequence[Sample]]) -> list[Sample]:
    return list(samples["dev"])


def hundred(samples: Mapping[str, Sequence[Sample]]) -> list[Sample]:
    """Of the training file, evenly spread within each stock check."""
    chosen = []
    for name, count in PER_CHECK.items():
        group = [one for one in samples["train"] if check_of(one) == name]
        chosen += [group[index * len(group) // count] for index in range(count)]
    return chosen


def check_of(sample: Sample) -> str:
    (script,) = [one for one in Problem.model_validate(sample.document).check if one is not None]
    return script.stock or name_of(script.code)


@pytest.mark.parametrize("dialect", ["agentbench-v0.2", "agentbench-fc"])
def test_our_own_samples(machines: Kind, dialect: str) -> None:
    verdicts, _ = play(HERE / "checkout", machines, everything, dialect=dialect)
    assert set(failing(verdicts)) == {"dev-00011", "std-007-count-00001"}
    assert verdicts["dev-00011"].status == "unknown"


@pytest.mark.slow
def test_every_dev_sample(machines: Kind, tmp_path: Path) -> None:
    verdicts, faults = play(public_files(tmp_path), machines, dev)
    assert len(verdicts) == 26
    assert set(failing(verdicts)) == set(faults) == {"dev-00008"}


@pytest.mark.slow
def test_doing_nothing_passes_no_dev_sample(machines: Kind, tmp_path: Path) -> None:
    verdicts, _ = play(public_files(tmp_path), machines, dev, play_nothing)
    assert len(verdicts) == 26
    assert passing(verdicts) == {}


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["agentbench-v0.2", "agentbench-fc"])
def test_a_hundred_of_the_training_file(machines: Kind, tmp_path: Path, dialect: str) -> None:
    verdicts, faults = play(public_files(tmp_path), machines, hundred, dialect=dialect)
    assert len(verdicts) == 100
    assert set(failing(verdicts)) == set(faults)
