"""Runs that begin with the elites of another: from the Hub, from a folder, killed and resumed."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cqd_hub import assets
from tests.pull.world import ARCHIVE, RECIPE, World, run_folder, world

MODELS = assets.folder("recipes") / "quickstart" / "models"
WIDER = RECIPE.replace("db: ann/db}", "db: ann/db, more: ann/more}").replace("small", "wider")


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        made.hub.put_model("ann/more", MODELS / "coding-lora")
        (tmp_path / "wider.yaml").write_text(WIDER)
        yield made


def individuals(run: Path) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(run / "journal.sqlite")) as journal:
        return journal.execute(
            "SELECT id, role, lineage, genome_hash FROM individuals WHERE id >= 0 ORDER BY id"
        ).fetchall()


def told(run: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(run / "journal.sqlite")) as journal:
        return [n for (n,) in journal.execute("SELECT individual FROM told ORDER BY position")]


def answers(run: Path) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(run / "journal.sqlite")) as journal:
        return journal.execute(
            "SELECT individual, skill, sample, text, score FROM measurements "
            "WHERE split = 'optimisation' ORDER BY individual, skill, sample"
        ).fetchall()


def children_elites(there: World) -> list[int]:
    """Ids of the published elites that are no experts."""
    return sorted({row["individual"] for row in there.rows("elites")} - {0, 1, 2})


@pytest.mark.slow
def test_with_one_more_expert_and_another_seed(there: World) -> None:
    sha = there.hub.commits(ARCHIVE)[0].oid
    done = there.cli(
        *("evolve", "wider.yaml", "--from", "ann/small", "--seed", 4, "--out", "new", "-q")
    )
    assert done.code == 0, done.err
    run, source = there.folder / "new", f"hf://datasets/ann/small@{sha}"
    seeds = [row for row in individuals(run) if row[1] == "seed"]
    assert seeds
    assert [row[0] for row in seeds] == list(range(4, 4 + len(children_elites(there))))
    origins = [json.loads(row[2])["from"] for row in seeds]
    assert [origin["individual"] for origin in origins] == children_elites(there)
    assert {origin["source"] for origin in origins} == {source}
    first = 4 + len(seeds)
    assert told(run) == list(range(first + 3))  # experts, seeds, children
    assert [row[0] for row in individuals(run) if row[1] == "child"] == [
        first,
        first + 1,
        first + 2,
    ]
    assert {n for n, *_ in answers(run)} == {-1, *range(first + 3)}  # evaluated anew
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["seeds"]["source"] == source

    # Resumed without the Hub, and only with what it began with.
    there.hub.die()
    again = there.cli(
        *("evolve", "wider.yaml", "--from", "ann/small", "--seed", 4, "--out", "new", "-q"),
        *("--children", 4),
    )
    assert again.code == 0, again.err
    assert told(run) == list(range(first + 4))
    for arguments in ((), ("--from", "ann/other"), ("--from", "ann/small@" + "0" * 40)):
        other = there.cli("evolve", "wider.yaml", "--seed", 4, "--out", "new", *arguments)
        assert f"began with elites of {source}" in other.error


@pytest.mark.slow
def test_killed_between_seeds(there: World) -> None:
    whole = ("evolve", "wider.yaml", "--from", "ann/small", "-q", "--children", 1, "--out")
    assert there.cli(*whole, "whole").code == 0
    environment = there.hub.environment(
        token=there.token,
        home=there.folder / "machine" / "hf",
        CQD_HUB_CACHE=str(there.folder / "machine" / "cache"),
        OMP_NUM_THREADS="1",
    )
    command = [sys.executable, "-m", "cqd_hub.cli.app", *map(str, whole), "killed"]
    process = subprocess.Popen(command, env=environment, cwd=there.folder)
    run = there.folder / "killed"
    while not recorded(run, 4):
        assert process.poll() is None
        threading.Event().wait(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there.put({"data/elites/00000.parquet": b"changed since"})
    done = there.cli(*whole, "killed")
    assert done.code == 0, done.err
    assert individuals(run) == individuals(there.folder / "whole")
    assert answers(run) == answers(there.folder / "whole")


def recorded(run: Path, number: int) -> bool:
    try:
        return any(row[0] == number for row in individuals(run))
    except sqlite3.OperationalError:
        return False


@pytest.mark.slow
def test_from_a_run_directory(there: World) -> None:
    shutil.copytree(run_folder(), there.folder / "old")
    done = there.cli(
        *("evolve", "wider.yaml", "--from", "old", "--out", "new", "-q", "--children", 0)
    )
    assert done.code == 0, done.err
    rows = individuals(there.folder / "new")
    origins = [json.loads(row[2])["from"] for row in rows if row[1] == "seed"]
    assert [origin["individual"] for origin in origins] == children_elites(there)
    assert origins[0]["source"] == str((there.folder / "old").resolve())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"os: ann/os, ": ""}, "that is not among the recipe's"),
        ({"base: ann/base": "base: ann/os", "os: ann/os, ": ""}, "made from another base"),
    ],
)
def test_what_cannot_be_moved(there: World, changes: dict[str, str], message: str) -> None:
    text = WIDER
    for old, new in changes.items():
        text = text.replace(old, new)
    (there.folder / "other.yaml").write_text(text)
    done = there.cli("evolve", "other.yaml", "--from", "ann/small", "--out", "new", "-q")
    assert message in done.error
    assert not (there.folder / "new").exists()


def test_nothing_there(there: World) -> None:
    (there.folder / "empty").mkdir()
    for place, message in (("ann/none", "is not on the Hub"), ("empty", "is no run directory")):
        done = there.cli("evolve", "wider.yaml", "--from", place, "--out", "new", "-q")
        assert message in done.error
        assert not (there.folder / "new").exists()
