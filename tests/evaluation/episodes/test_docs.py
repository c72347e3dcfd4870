"""The worked example of the documentation does what it says."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cqd_hub import assets
from cqd_hub.evaluation.episodes import Episode, Message, Sample, Turn, Verdict
from cqd_hub.evaluation.episodes.manifest import find_manifest, load_manifest

DOCUMENT = Path(__file__).parents[3] / "docs" / "episodes.md"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The example's files, with the quickstart's models in place of the reader's."""
    python, manifest, recipe = re.findall(
        r"^```(?:python|yaml)\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE
    )
    (tmp_path / "maze.py").write_text(python)
    (tmp_path / "maze.yaml").write_text(manifest)
    (tmp_path / "recipe.yaml").write_text(recipe)
    models = (assets.folder("recipes") / "quickstart" / "models").resolve()
    (tmp_path / "models").symlink_to(models)
    return tmp_path


def test_it_runs_through_the_command(example: Path) -> None:
    command = [sys.executable, "-m", "cqd_hub.cli.app", "eval", "recipe.yaml", "--json"]
    done = subprocess.run(command, cwd=example, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 3
    for row in rows:
        assert set(row["skills"]) == {"small", "large"}


def test_whoever_follows_the_doors_gets_out(example: Path) -> None:
    loaded = load_manifest(*_manifest(example), {"size": 4}, example, "skills.x")
    environment = loaded.environment
    assert environment.rounds == 16
    (samples,) = environment.samples().values()
    assert len({sample.question for sample in samples}) == len(samples) == 60

    async def walk(episode: Episode, sample: Sample) -> Turn:
        ways = {(0, -1): "north", (1, 0): "east", (0, 1): "south", (-1, 0): "west"}
        path = _path(sample.document["doors"], (0, 0), sample.document["exit"])
        for here, there in itertools.pairwise(path):
            way = ways[there[0] - here[0], there[1] - here[1]]
            turn = await episode.step(Message("assistant", f"I go {way.title()}."))
        return turn

    async def go() -> None:
        for sample in samples[:10]:
            episode = await environment.begin(sample)
            assert "Doors lead " in episode.opening[0].content
            assert await walk(episode, sample) == Verdict(1.0)
        stuck = await environment.begin(samples[0])
        assert "Say north" in (await stuck.step(Message("assistant", "?"))).messages[0].content  # type: ignore[union-attr]
        assert (await stuck.end("task limit reached")).score == 0

    asyncio.run(go())


def _manifest(folder: Path):  # type: ignore[no-untyped-def]
    found = find_manifest("maze", [folder], folder, "skills.x.task")
    assert found is not None
    return found


def _path(doors: list, here: tuple, there: tuple) -> list:
    """The one way from room to room."""
    waiting = [[here]]
    while True:
        path = waiting.pop(0)
        if path[-1] == there:
            return path
        for door in doors:
            for one, two in (door, door[::-1]):
                if one == path[-1] and two not in path:
                    waiting.append([*path, two])
