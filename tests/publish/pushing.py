"""A Hub, a finished run, and a command line that pushes one to the other."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from cqd_hub import assets
from tests.hub.server import HubServer

ROOT = Path(__file__).parents[2]
MODELS = assets.folder("recipes") / "quickstart" / "models"
RECIPE = f"""\
name: small
base: {MODELS.resolve()}/base
experts:
  coding: {MODELS.resolve()}/coding
  os: {MODELS.resolve()}/os
  db: {MODELS.resolve()}/db
skills:
  coding: {{task: quickstart_coding}}
  os: {{task: quickstart_os}}
  db: {{task: quickstart_db}}
samples: {{optimisation: 8, validation: 8, test: 8}}
search: {{children: 4, children_per_step: 2}}
"""


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str
    loaded: list[str]

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Driver:
    """The process of `tests.publish.driver`, whose Hub is at one port for as long as it lives."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        with HubServer(port=self.port) as server:
            environment = server.environment(home=home, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
        environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        self.run = subprocess.Popen(
            [sys.executable, "-m", "tests.publish.driver"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, *arguments: object, **environment: str | None) -> Result:
        assert self.run.stdin
        assert self.run.stdout
        asked = {"arguments": [str(word) for word in arguments], "environment": environment}
        print(json.dumps(asked), file=self.run.stdin, flush=True)
        return Result(**json.loads(self.run.stdout.readline()))

    def stop(self) -> None:
        assert self.run.stdin
        self.run.stdin.close()
        self.run.wait(30)


def evolve(folder: Path) -> Path:
    """A finished run of four children."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    command = [sys.executable, "-m", "cqd_hub.cli.app", "evolve", str(recipe), "--out"]
    done = subprocess.run(
        [*command, str(folder / "run"), "-q"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


def state(hub: HubServer) -> dict[str, Any]:
    """All that a Hub holds, but for commits."""
    return {
        "repos": {name: (hub.files(name), hub.repo(name).private) for name in hub.repos()},
        "collections": hub.collections(),
    }
