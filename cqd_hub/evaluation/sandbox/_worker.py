"""One warm worker: a process in a box that takes a request and gives a report."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from ._programs import Limits, PythonCall, printable, request_of
from ._start import Start, frame

LARGEST_REPORT = 1 << 28
PATIENCE = 15.0  # seconds past the wall limit until a box counts as hung
PROBE = request_of(
    PythonCall("def one(x): return x + 1", "one", ((1,),)),
    Limits(cpu_seconds=20.0, wall_seconds=60.0),
)


class WorkerLost(Exception):
    """The box died, hung or spoke nonsense.

    Args:
        detail: What is known, printable.
        died: It ended while the answer was running, so the answer may have caused it.
    """

    def __init__(self, detail: str, *, died: bool = False) -> None:
        super().__init__(detail)
        self.died = died


def sound(report: Any) -> bool:
    """True for the report of `PROBE` from a working box."""
    return isinstance(report, dict) and '[{"ok": 2}]' in report.get("reply", "")


async def exchange(process: asyncio.subprocess.Process, data: bytes) -> dict[str, Any]:
    """Write *data*, read one report frame.

    Raises:
        OSError, EOFError, ValueError: the process ended or what it wrote is no report.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(data)
    await process.stdin.drain()
    (length,) = struct.unpack(">I", await process.stdout.readexactly(4))
    if length > LARGEST_REPORT:
        raise ValueError("a report longer than any")
    report = json.loads(await process.stdout.readexactly(length))
    if not isinstance(report, dict) or "end" not in report:
        raise ValueError("not a report")
    return report


async def last_words(process: asyncio.subprocess.Process) -> str:
    """The last line that a failing process printed."""
    assert process.stderr is not None
    text = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2):
            text = await process.stderr.read(4000)
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return printable(lines[-1]) if lines else "it ended without a word"


async def start_process(
    command: Sequence[str], environment: Mapping[str, str] | None
) -> asyncio.subprocess.Process:
    """Start a process in a session of its own, with pipes.

    Cancelled midway, asyncio waits for ever for pipes that were never connected: so this starts it,
    and then ends it again.
    """
    pipe = asyncio.subprocess.PIPE
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        process = await starting
        process.kill()
        await process.communicate()
        raise


class Worker:
    """A started box. Not for concurrent use; `close` it whatever happens."""

    def __init__(self, start: Callable[[], AbstractContextManager[Start]]) -> None:
        self._start = start
        self._stack = ExitStack()
        self._process: asyncio.subprocess.Process | None = None

    async def open(self) -> None:
        """Start the box and run a trivial answer in it.

        Raises:
            WorkerLost: it does not work; the message says what it printed.
        """
        start = self._stack.enter_context(self._start())
        self._process = await start_process(start.command, start.environment)
        try:
            report = await self._exchange(start.first + frame(PROBE), 90.0)
        except WorkerLost as lost:
            raise WorkerLost(str(lost)) from None
        if not sound(report):
            raise WorkerLost(printable(str(report)))

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the report of one answer.

        Raises:
            WorkerLost: close this worker and open another.
        """
        wall = request["limits"]["wall_seconds"]
        return await self._exchange(frame(request), wall + PATIENCE)

    async def _exchange(self, data: bytes, seconds: float) -> dict[str, Any]:
        assert self._process is not None
        try:
            async with asyncio.timeout(seconds):
                report = await exchange(self._process, data)
        except TimeoutError:
            raise WorkerLost("the box hung") from None
        except (OSError, EOFError, ValueError):
            raise WorkerLost(await last_words(self._process), died=True) from None
        if report["end"] == "setup":
            raise WorkerLost(printable(report["detail"]))
        return report

    async def close(self) -> None:
        """End the box and every process in it."""
        process = self._process
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()  # the zygote, or a keeper with its answer, ends on this
            try:
                await asyncio.wait_for(process.wait(), 3)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            self._process = None
        self._stack.close()
