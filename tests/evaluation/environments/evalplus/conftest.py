from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cqd_hub.evaluation.sandbox import Sandbox, open_sandbox

from .common import TASKS, Ground, write


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def sandbox(loop: asyncio.AbstractEventLoop) -> Iterator[Sandbox]:
    """The best kind this machine has."""
    sandbox = loop.run_until_complete(open_sandbox(workers=2))
    yield sandbox
    loop.run_until_complete(sandbox.close())


@pytest.fixture
def ground(
    loop: asyncio.AbstractEventLoop, sandbox: Sandbox, tmp_path: Path
) -> Callable[..., Ground]:
    """Opens an environment over our own tasks, or over *data*."""

    def open_ground(data: Path | None = None, **options: Any) -> Ground:
        return Ground(loop, sandbox, data or write(tmp_path / "tasks.jsonl", TASKS), **options)

    return open_ground
