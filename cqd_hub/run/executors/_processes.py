"""One worker process per device of this machine, supervised."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.sandbox import printable
from cqd_hub.run.executors._handing import HandingOut, WorkerGone
from cqd_hub.run.executors._messages import refuse_error
from cqd_hub.run.executors._worker import Opening

HEAD = struct.Struct(">IQ")  # length of what follows, number of the job
HELLO, NOTE = 0, (1 << 64) - 1


class ProcessExecutor(HandingOut["_Process"]):
    """Worker processes on this machine, each with a model of its own; one that dies is replaced.

    Args:
        opening: What each of them opens.
        environments: Per worker, environment variables besides ours, e.g. its GPU.
        note: Called with a line for what a person should know.
    """

    def __init__(
        self,
        opening: Opening,
        environments: Sequence[Mapping[str, str]],
        *,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._opening, self._note = opening, note
        self._processes = [_Process(opening, extra, note) for extra in environments]
        self._free: asyncio.Queue[_Process] = asyncio.Queue()

    @property
    def workers(self) -> int:
        return len(self._processes)

    @property
    def width(self) -> int:
        return sum(process.width for process in self._processes)

    async def __aenter__(self) -> Self:
        try:
            # One first: what it fetches and factors, the others find there.
            await self._processes[0].open()
            await asyncio.gather(*(process.open() for process in self._processes[1:]))
        except BaseException:
            await self._close()
            raise
        # Each worker gets its second job when all have their first.
        for turn in range(max(process.width for process in self._processes)):
            for process in self._processes:
                if turn < process.width:
                    self._free.put_nowait(process)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        await asyncio.gather(*(process.close() for process in self._processes))

    async def manifests(self) -> Sequence[dict[str, Any]]:
        return [process.manifest for process in self._processes]

    async def _take(self) -> _Process:
        return await self._free.get()

    async def _ask(self, hand: _Process, order: bytes) -> bytes:
        return await hand.ask(order)

    def _lost(self, hand: _Process, words: str) -> None:
        self._note(f"a worker ended ({words}); its children are evaluated again")

    def _give_back(self, hand: _Process) -> None:
        self._free.put_nowait(hand)  # one that is gone starts again when it is asked


class _Process:
    """One worker process, started again when it is needed and gone."""

    def __init__(
        self, opening: Opening, extra: Mapping[str, str], note: Callable[[str], None]
    ) -> None:
        self._opening, self._extra, self._note = opening, extra, note
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._numbers = itertools.count(1)
        self._opened = asyncio.Lock()
        self.manifest: dict[str, Any] = {}
        self.width = 1

    async def open(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            UserError, RunError: What it says of models, tasks, device or sandbox.
        """
        command = [sys.executable, "-m", "cqd_hub.run.executors.process"]
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=pipe,
            stdout=pipe,
            env={**os.environ, **self._extra},
            start_new_session=True,  # an interrupt is the driver's to deal with
        )
        hello: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting = {HELLO: hello}
        self._reader = asyncio.create_task(self._read(self._process, self._waiting))
        try:
            self._write(HELLO, self._opening.to_json().encode())
            told = json.loads(await hello)
        except WorkerGone as gone:
            raise RunError(f"a worker does not start: {gone}") from None
        refuse_error(told)
        self.manifest, self.width = told["manifest"], told["width"]

    async def ask(self, order: bytes) -> bytes:
        """The answer to an order.

        Raises:
            WorkerGone: It ended.
        """
        async with self._opened:
            if self._reader is None or self._reader.done():
                try:
                    await self.open()
                except UserError as error:  # it was there before: not the user's doing
                    raise RunError(error.what, where=error.where, remedy=error.remedy) from None
        number = next(self._numbers)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._write(number, order)
        return await future

    def _write(self, number: int, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # the reader finds out
            self._process.stdin.write(HEAD.pack(len(data), number) + data)

    async def _read(
        self, process: asyncio.subprocess.Process, waiting: dict[int, asyncio.Future[bytes]]
    ) -> None:
        assert process.stdout is not None
        try:
            while True:
                length, number = HEAD.unpack(await process.stdout.readexactly(HEAD.size))
                data = await process.stdout.readexactly(length)
                if number == NOTE:
                    self._note(printable(data.decode(errors="replace"), 500))
                elif (future := waiting.pop(number, None)) and not future.done():
                    future.set_result(data)
        except asyncio.IncompleteReadError:
            code = await process.wait()
            gone = WorkerGone(f"killed by signal {-code}" if code < 0 else f"exit code {code}")
            for future in waiting.values():
                if not future.done():
                    future.set_exception(gone)

    async def close(self) -> None:
        """End it."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
