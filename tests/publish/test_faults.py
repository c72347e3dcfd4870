"""A Hub that is busy, away, loses answers, or is written by others at the same time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.hub.server import HubServer
from tests.publish.conftest import TOKEN, Push
from tests.publish.pushing import ROOT, state
from tests.publish.test_push import ARCHIVE, journal, rows

NOTHING = ("--elites", "none")
COMMIT = "/api/datasets/ann/small/commit/"


@pytest.mark.parametrize(
    ("kind", "path", "options"),
    [
        ("status", COMMIT, {"status": 429, "headers": {"Retry-After": "7"}}),
        ("status", "whoami", {"status": 429, "headers": {"Retry-After": "7"}}),
        ("status", "objects/batch", {"status": 429, "headers": {"Retry-After": "7"}}),
        ("status", "/_lfs/", {"status": 429, "headers": {"Retry-After": "7"}}),
        ("status", "tree/", {"status": 429, "headers": {"RateLimit": '"api";r=0;t=7'}}),
        ("status", COMMIT, {"status": 503}),
        ("status", COMMIT, {"status": 500}),
        ("status", COMMIT, {"status": 409}),
        ("status", COMMIT, {"status": 412}),
        ("status", "validate-yaml", {"status": 502}),
        ("status", "repos/create", {"status": 503}),
        ("lose", "repos/create", {}),
        ("drop", COMMIT, {}),
        ("lose", COMMIT, {}),
        ("truncate", COMMIT, {}),
        ("status", "/_lfs/", {"status": 503}),
        ("drop", "/_lfs/", {}),
        ("status", "objects/batch", {"status": 500}),
        ("drop", "preupload", {}),
        ("status", "tree/", {"status": 504}),
    ],
)
def test_what_passes_is_waited_out(
    hub: HubServer, push: Push, kind: str, path: str, options: dict[str, object]
) -> None:
    fault = hub.fault(kind, path, **options)  # type: ignore[arg-type]
    done = push(*NOTHING)
    assert done.code == 0, done.err
    assert fault.fired == 1
    assert len(hub.commits(ARCHIVE)) == 2
    if "headers" in options:
        assert "trying again in 8 s (waited 0 of at most 60 s)" in done.err


def test_500_after_the_work_commits_once(hub: HubServer, push: Push) -> None:
    """The answer is lost every time but the last: the commit is found by its mark."""
    fault = hub.fault("lose", COMMIT, times=3)
    assert push(*NOTHING).code == 0
    assert fault.fired == 1
    assert len(hub.commits(ARCHIVE)) == 2


def test_long_waits_are_refused_and_said(hub: HubServer, push: Push) -> None:
    """Also where the client would wait by itself, and where it would ask again without a pause."""
    busy = {"error": "Cannot create repo: another conflicting operation is in progress"}
    fault = hub.fault("status", "repos/create", status=409, body=busy, times=None)
    done = push(*NOTHING, CQD_HUB_PATIENCE="20")
    assert done.code == 1
    assert "another repository is being created" in done.err
    assert fault.fired < 10
    hub.faults.clear()
    fault = hub.fault("status", "/_lfs/", status=429, headers={"Retry-After": "3600"}, times=None)
    done = push(*NOTHING)
    assert done.code == 1
    assert "status 429" in done.err
    assert fault.fired < 20
    hub.faults.clear()
    assert push(*NOTHING).code == 0
    assert len(hub.commits(ARCHIVE)) == 2


def test_absent_hub_ends_in_one_line_and_is_made_good(hub: HubServer, push: Push) -> None:
    hub.fault("status", COMMIT, status=503, times=None)
    done = push(*NOTHING, CQD_HUB_PATIENCE="20")
    assert done.code == 1
    assert "run the same command again later" in done.err.splitlines()[-1]
    hub.faults.clear()
    assert push(*NOTHING).code == 0
    assert len(hub.commits(ARCHIVE)) == 2
    hub.die()
    done = push(*NOTHING, CQD_HUB_PATIENCE="5")
    assert done.code == 1
    assert "Traceback" not in done.err


def test_commit_of_somebody_else_is_kept(hub: HubServer, push: Push) -> None:
    assert push(*NOTHING).code == 0
    hub.put(ARCHIVE, {"notes/mine.txt": "mine", "README.md": "mine"})
    assert push(*NOTHING).code == 0
    assert hub.file(ARCHIVE, "notes/mine.txt") == b"mine"
    assert b"an archive of evolved models" in hub.file(ARCHIVE, "README.md")


def test_two_pushes_at_once_lose_nothing(hub: HubServer, run: Path, tmp_path: Path) -> None:
    """From two machines: copies of one run, one of them further on."""
    early = Path(shutil.copytree(run, tmp_path / "early"))
    code = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as database:
    database.execute("DELETE FROM measurements WHERE individual > 4 OR individual < -1")
    database.execute("DELETE FROM measurements WHERE split != 'optimisation'")
    database.execute("DELETE FROM told WHERE individual > 4")
    database.execute("DELETE FROM individuals WHERE id > 4 OR id < -1")
"""
    subprocess.run([sys.executable, "-c", code, str(early / "journal.sqlite")], check=True)
    (early / "results.json").unlink()
    # Every commit waits, so that both begin from the same head.
    hub.fault("delay", COMMIT, seconds=1.0, times=4)
    environment = hub.environment(token=TOKEN, home=tmp_path / "home", OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "cqd_hub.cli.app", "push"]
    both = [
        subprocess.Popen(
            [*command, str(folder), "--to", "ann/small", *NOTHING],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder in (early, run)
    ]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    ids = [n for (n,) in journal(run, "SELECT id FROM individuals ORDER BY id")]
    assert sorted(row["id"] for row in rows(hub, "individuals")) == ids
    assert len(rows(hub, "scores")) == journal(run, "SELECT COUNT(*) FROM measurements")[0][0]
    assert json.loads(hub.file(ARCHIVE, "cqd_hub.json"))["told"] == 7


def test_two_pushes_of_one_directory_take_turns(
    hub: HubServer, push: Push, run: Path, tmp_path: Path
) -> None:
    hub.fault("delay", COMMIT, seconds=1.0)
    environment = hub.environment(token=TOKEN, home=tmp_path / "home", OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "cqd_hub.cli.app", "push", str(run), "--to", "ann/small"]
    both = [
        subprocess.Popen([*command, *NOTHING], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.wait(120) for process in both] == [0, 0]
    assert len(hub.commits(ARCHIVE)) == 2
    before = state(hub)
    assert push(*NOTHING).code == 0
    assert state(hub) == before


@pytest.mark.parametrize(
    "at",
    [
        "objects/batch",
        pytest.param("/_lfs/models/.*verify", marks=pytest.mark.slow),
        pytest.param("/commit/", marks=pytest.mark.slow),
        pytest.param("collections", marks=pytest.mark.slow),
    ],
)
def test_killed_push_is_completed(
    hub: HubServer, push: Push, run: Path, tmp_path: Path, at: str
) -> None:
    options = ("--elites", "aggregate", "--form", "checkpoint")
    assert (
        push(*options, to="ann/other", folder=Path(shutil.copytree(run, tmp_path / "o"))).code == 0
    )
    wanted = {name: set(hub.files(name)) for name in hub.repos() if "other" in name}
    fault = hub.fault("delay", at, seconds=60, times=None)
    environment = hub.environment(token=TOKEN, home=tmp_path / "home", OMP_NUM_THREADS="1")
    environment["CQD_HUB_CACHE"] = os.environ["CQD_HUB_CACHE"]
    command = [sys.executable, "-m", "cqd_hub.cli.app", "push", str(run), "--to", "ann/small"]
    with subprocess.Popen(
        [*command, *options], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    ) as process:
        while not fault.fired:
            assert process.poll() is None
            threading.Event().wait(0.01)
        process.kill()
    hub.faults.clear()
    assert push(*options).code == 0
    made = {name: set(hub.files(name)) for name in hub.repos() if "small" in name}
    assert {name.replace("small", "other"): files for name, files in made.items()} == wanted
    assert all(len(hub.commits(name)) == 2 for name in made)
    assert not list((run / ".push").glob("*/*"))
