"""One server of databases in a box, and how it is asked."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import struct
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cqd_hub.evaluation.databases._interface import DatabaseLost
from cqd_hub.evaluation.sandbox import Sandbox, Service, printable

_BOX = Path(__file__).parent / "box"
_MODULES = ("sql_text", "sql_values", "sql_strings", "sql_groups", "sql_dates", "sql_server")
_LARGEST_REPLY = 1 << 26
_START_SECONDS = 90.0


@dataclass(frozen=True)
class SqlLimits:
    """Bounds of one session.

    Attributes:
        statement_steps: SQLite's instructions in one statement.
        statement_seconds: CPU time of one statement, for what no instruction counts.
        hang_seconds: Elapsed time until a server counts as hung.
        database_mb: MiB of one database.
        memory_mb: MiB of all databases of one server and the work on them; its process may have
            half as much again.
        rows, result_bytes: A result's first rows within these are kept.
        statement_bytes: Length of what is executed at once.
    """

    statement_steps: int = 50_000_000
    statement_seconds: float = 10.0
    hang_seconds: float = 120.0
    database_mb: int = 16
    memory_mb: int = 512
    rows: int = 10_000
    result_bytes: int = 1 << 20
    statement_bytes: int = 1 << 14


def service(limits: SqlLimits) -> Service:
    """The server as a sandbox starts it."""
    modules = tuple((name, (_BOX / f"{name}.py").read_text(encoding="utf-8")) for name in _MODULES)
    return Service(modules, limits.memory_mb * 3 // 2)


class ServerGone(DatabaseLost):
    """The server was lost before this request was sent: another's doing."""


class Server:
    """A started server. Requests queue; whatever goes wrong ends it for all its sessions."""

    def __init__(self, sandbox: Sandbox, limits: SqlLimits) -> None:
        self._sandbox, self._limits = sandbox, limits
        self._stack = ExitStack()
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._numbers = itertools.count()
        self.sessions = 0
        self.lost = ""
        self.version = ""  # SQLite's

    async def open(self) -> None:
        """Start it.

        Raises:
            DatabaseLost: It does not start; the detail says what it printed.
        """
        start = self._stack.enter_context(self._sandbox.service(service(self._limits)))
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *start.command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=start.environment,
            cwd="/",
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(start.first)
        number = await self.begin([], seconds=_START_SECONDS)
        self.end(number)

    async def begin(self, tables: list[Any], *, seconds: float | None = None) -> int:
        """A new session's number.

        Raises:
            DatabaseLost: see `ask`.
            ValueError: The tables cannot be made; SQLite's word.
        """
        number = next(self._numbers)
        request = {"session": number, "tables": tables, "limits": asdict(self._limits)}
        reply = await self.ask("begin", request, seconds=seconds)
        if "error" in reply:
            raise ValueError(reply["error"])
        self.sessions += 1
        self.version = printable(str(reply.get("version", "")))
        return number

    def end(self, number: int) -> None:
        """Drop a session's database; nothing is waited for."""
        self.sessions -= 1
        if not self.lost and self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(_frame({"end": [number]}))

    async def ask(
        self, kind: str, request: dict[str, Any], *, seconds: float | None = None
    ) -> dict[str, Any]:
        """The server's reply.

        Raises:
            ServerGone: See there.
            DatabaseLost: It died, hung, spoke nonsense, or had no memory for this session.
        """
        async with self._lock:
            if self.lost or self._process is None:
                raise ServerGone(self.lost or "the server is closed")
            try:
                async with asyncio.timeout(seconds or self._limits.hang_seconds):
                    reply = await self._exchange(_frame({"do": kind, **request}))
            except TimeoutError:
                await self._fail("the server hung")
            except (OSError, EOFError, ValueError):
                await self._fail(await self._last_words())
            except BaseException:  # cancelled midway: the reply must not meet another request
                self.lost = "a request to the server was given up"
                raise
        if "lost" in reply:
            raise DatabaseLost(printable(str(reply["lost"])))
        return reply

    async def _exchange(self, data: bytes) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(data)
        if len(data) > 1 << 15:
            await self._process.stdin.drain()
        (length,) = struct.unpack(">I", await self._process.stdout.readexactly(4))
        if length > _LARGEST_REPLY:
            raise ValueError("a reply longer than any")
        reply = json.loads(await self._process.stdout.readexactly(length))
        if not isinstance(reply, dict):
            raise ValueError("not a reply")
        return reply

    async def _fail(self, detail: str) -> None:
        self.lost = detail
        await self.close()
        raise DatabaseLost(detail)

    async def _last_words(self) -> str:
        assert self._process is not None
        assert self._process.stderr is not None
        text = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                text = await self._process.stderr.read(4000)
        lines = text.decode("utf-8", "replace").strip().splitlines()
        return printable(lines[-1]) if lines else "the server ended without a word"

    async def close(self) -> None:
        """End the server and every database in it."""
        self.lost = self.lost or "the server is closed"
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), 0.5)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        self._stack.close()


def _frame(content: dict[str, Any]) -> bytes:
    data = json.dumps(content).encode()
    return struct.pack(">I", len(data)) + data
