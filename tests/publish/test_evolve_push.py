"""`evolve --push`: published as it goes, and never held up or ended by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cqd_hub.publish.uploader import Uploader
from tests.hub.server import HubServer
from tests.publish.conftest import TOKEN, Push
from tests.publish.pushing import RECIPE, ROOT, Driver, state
from tests.publish.test_push import ARCHIVE, journal, rows


def evolve(
    hub: HubServer, folder: Path, *arguments: str, token: str = TOKEN, **extra: str
) -> subprocess.CompletedProcess[str]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    kept = {name: os.environ[name] for name in ("CQD_HUB_CACHE", "HF_DATASETS_CACHE")}
    environment = hub.environment(token=token, home=folder / "home", **kept, **extra)
    environment |= {"OMP_NUM_THREADS": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-m", "cqd_hub.cli.app", "evolve", str(recipe)]
    return subprocess.run(
        [*command, "--out", str(folder / "run"), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_published_while_it_goes_and_whole_at_the_end(
    hub: HubServer, push: Push, tmp_path: Path
) -> None:
    arguments = ("--push", "ann/small", "--push-every", "2", "--children", "12", "--json")
    done = evolve(hub, tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert all(json.loads(line)["split"] for line in done.stdout.splitlines())
    individuals = journal(tmp_path / "run", "SELECT id FROM individuals ORDER BY id")
    assert sorted((row["id"],) for row in rows(hub, "individuals")) == individuals
    assert "ann/small-best" in hub.repos()
    assert hub.collections()
    assert (tmp_path / "run" / ".push" / "log.txt").exists()  # of a push while it went
    before = state(hub)
    assert push(folder=tmp_path / "run").code == 0
    assert state(hub) == before


@pytest.mark.slow
def test_absent_hub_neither_ends_nor_holds_up_a_run(
    hub: HubServer, push: Push, tmp_path: Path
) -> None:
    hub.fault("status", COMMIT_OR_CREATE, status=503, times=None)
    done = evolve(hub, tmp_path, "--push", "ann/small", "--push-every", "1", CQD_HUB_PATIENCE="1")
    assert done.returncode == 0, done.stderr
    assert "to publish the rest: cqd-hub push" in done.stderr
    assert ARCHIVE not in hub.repos()
    hub.faults.clear()
    assert push(folder=tmp_path / "run").code == 0
    assert json.loads(hub.file(ARCHIVE, "cqd_hub.json"))["chosen"] is not None


COMMIT_OR_CREATE = "/commit/|repos/create"


def test_refused_before_the_run_begins(hub: HubServer, driver: Driver, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    for arguments, token, said in (
        (("--push", "bob/small"), TOKEN, "neither you, ann"),
        (("--push", "ann/a--b"), TOKEN, "'--'"),
        (("--push", "ann/small"), "hf_bad", "does not accept this token"),
        (("--push-every", "3"), TOKEN, "add --push"),
    ):
        out = tmp_path / "out"
        done = driver("evolve", recipe, "--out", out, *arguments, HF_TOKEN=token)
        assert done.code == 2
        assert said in done.err
        assert not out.exists()


def test_uploader_pushes_when_it_is_time(
    hub: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in hub.environment(token=TOKEN, home=tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    notes: list[str] = []
    uploader = Uploader(run, "ann/small", every=3, note=notes.append)
    log = run / ".push" / "log.txt"
    for children in (10, 11, 12):
        uploader.children(children)
    assert not log.exists()
    uploader.children(13)
    assert log.exists()
    wait(uploader, 13)
    assert notes == ["published as far as it was: ann/small"]
    assert hub.repos() == [ARCHIVE, "lab/base"]
    hub.fault("status", "whoami", status=401, times=None)
    uploader.children(16)
    wait(uploader, 16)
    assert "does not accept this token" in notes[1]


def wait(uploader: Uploader, children: int) -> None:
    """Until the push that is running has been noted."""
    while uploader.running:
        threading.Event().wait(0.02)
        uploader.children(children)
