"""One finished run and one process of the command line for all tests of publishing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hub.server import HubServer
from tests.publish.pushing import MODELS, Driver, Result, evolve

Push = Callable[..., Result]
TOKEN = "hf_ann"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be copied before it is published."""
    return evolve(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run of the test's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    started = Driver(tmp_path_factory.mktemp("home"))
    yield started
    started.stop()


@pytest.fixture
def hub(driver: Driver) -> Iterator[HubServer]:
    """A Hub with a user, ann, in an organisation, lab, and the run's base."""
    with HubServer(port=driver.port) as server:
        server.token("ann", value=TOKEN, orgs={"lab": "write", "club": "read"})
        server.put_model("lab/base", MODELS / "base")
        server.log.reset()
        yield server


@pytest.fixture
def push(driver: Driver, hub: HubServer, run: Path) -> Push:
    """`cqd-hub push RUN --to ann/small …`, as ann."""

    def command(
        *arguments: object, to: str = "ann/small", folder: Path = run, **environment: str | None
    ) -> Result:
        environment = {"HF_TOKEN": TOKEN, "CQD_HUB_PATIENCE": "60", **environment}
        return driver("push", folder, "--to", to, *arguments, **environment)

    return command
