"""The Hub dies at every request of a push in turn; the same command completes it each time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub.server import HubServer
from tests.publish.conftest import TOKEN
from tests.publish.pushing import MODELS, Driver, state

OPTIONS = ("--elites", "aggregate", "--base", "lab/base", "--form", "adapter")


@pytest.fixture
def fresh(driver: Driver, tmp_path: Path) -> Callable[[], HubServer]:
    """Makes Hubs that are the same to the last commit."""
    base = {"model.safetensors": (MODELS / "base" / "model.safetensors").read_bytes()}
    with HubServer(folder=tmp_path / "hub") as server:
        server.token("ann", value=TOKEN)
        server.put_model("lab/base", base)

    def copy() -> HubServer:
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "hub", folder)
        return HubServer(port=driver.port, folder=folder)

    return copy


def push(driver: Driver, run: Path, **environment: str) -> int:
    done = driver("push", run, "--to", "ann/small", *OPTIONS, "-q", HF_TOKEN=TOKEN, **environment)
    assert "Traceback" not in done.err, done.err
    return done.code


@pytest.mark.slow
def test_death_at_every_request(driver: Driver, run: Path, fresh: Callable[[], HubServer]) -> None:
    with fresh() as hub:
        assert push(driver, run) == 0
        wanted, requests = state(hub), len(hub.log)
        commits = {name: len(hub.commits(name)) for name in hub.repos()}
        before = requests
        assert push(driver, run) == 0
        assert state(hub) == wanted
        assert len(hub.log) > before
    survived = 0
    for after in (False, True):
        for number in range(1, requests + 1):
            with fresh() as hub:
                hub.die_at(number, after=after)
                assert push(driver, run, CQD_HUB_PATIENCE="0") == 1, (number, after)
                hub.revive()
                assert push(driver, run, CQD_HUB_PATIENCE="0") == 0, (number, after)
                assert state(hub) == wanted, (number, after)
                made = {name: len(hub.commits(name)) for name in hub.repos()}
                assert made == commits, (number, after)
            survived += 1
    print(f"{survived} deaths survived, {requests} requests")
