"""Real sandboxes of every kind this machine can run, behind one synchronous handle."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator

import pytest

from cqd_hub.evaluation.sandbox import (
    Limits,
    Outcome,
    Program,
    PythonCall,
    Sandbox,
    available,
    open_sandbox,
)

IMAGE = os.environ.get("CQD_HUB_TEST_IMAGE", "cqd-box-test")
GOOD = PythonCall("def double(x):\n    return 2 * x", "double", ((21,),))


class Box:
    """A sandbox with one worker, and the event loop it lives in."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sandbox: Sandbox) -> None:
        self.loop, self.sandbox, self.kind = loop, sandbox, sandbox.kind

    def run(self, program: Program, limits: Limits | None = None) -> Outcome:
        return self.loop.run_until_complete(self.sandbox.run(program, limits or Limits()))

    def still_right(self) -> None:
        """The next answer gets its right verdict."""
        assert self.run(GOOD).value == [{"ok": 42}]


def _why_skipped(kind: str) -> str:
    found = {state.kind: state for state in available()}[kind]
    if not found.ok:
        return f"{kind}: {found.why_not}"
    if kind == "docker":
        done = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True)
        if done.returncode:
            return f"docker: no image {IMAGE} (name one in CQD_HUB_TEST_IMAGE)"
    return ""


@pytest.fixture(
    scope="session",
    params=["bubblewrap", "landlock", pytest.param("docker", marks=pytest.mark.slow)],
)
def box(request: pytest.FixtureRequest) -> Iterator[Box]:
    if reason := _why_skipped(request.param):
        pytest.skip(reason)
    os.environ["SECRET_TOKEN"] = "hf_" + "s3cret" * 5
    loop = asyncio.new_event_loop()
    sandbox = loop.run_until_complete(open_sandbox(request.param, workers=1, image=IMAGE))
    yield Box(loop, sandbox)
    loop.run_until_complete(sandbox.close())
    loop.close()
    os.environ.pop("SECRET_TOKEN", None)  # the boxes of other kinds set it too
