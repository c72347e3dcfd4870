"""The translator, in a process of its own that is replaced when a statement was too much for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import OrderedDict
from typing import Any

from cqd_hub.errors import RunError

from ._errors import COMPLEX

KEPT = 1 << 12  # translations
CPU_SECONDS = 1.0  # of one translation
_WALL_SECONDS = 60.0
_REPLY = 1 << 24
_COMMAND = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from cqd_hub.evaluation.databases.sqlite.translate.process import main; "
    "main(float(sys.argv[2]))"
)

Statements = list[dict[str, Any]]


class Translator:
    """Translates MySQL's statements; what it said before it remembers."""

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self._known: OrderedDict[tuple[str, str], Statements] = OrderedDict()
        self._lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    async def translate(self, sql: str, database: str) -> Statements:
        """See `translate.translate`; what ends the process twice is answered with an error."""
        key = (sql, database)
        if (found := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            return found
        async with self._lock:
            found = await self._asked(sql, database)
        self._known[key] = found
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return found

    async def _asked(self, sql: str, database: str) -> Statements:
        request = {"sql": sql, "database": database, "strict": self._strict}
        line = json.dumps(request).encode() + b"\n"
        for _ in range(2):  # the first may have met a process that something else had ended
            if self._process is None:
                await self._start()
            assert self._process is not None
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            try:
                async with asyncio.timeout(_WALL_SECONDS):
                    self._process.stdin.write(line)
                    await self._process.stdin.drain()
                    found: Statements = json.loads(await self._process.stdout.readline())
                return found
            except (OSError, ValueError, TimeoutError):
                if await self.close() == -signal.SIGPROF:  # its time was up
                    break
            except BaseException:  # cancelled midway: the answer must not meet another question
                await self.close()
                raise
        return [{"fault": COMPLEX}]

    async def _start(self) -> None:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-B", "-c", _COMMAND),
            *(json.dumps([os.path.abspath(path) for path in sys.path]), str(CPU_SECONDS)),
            stdin=pipe,
            stdout=pipe,
            stderr=asyncio.subprocess.DEVNULL,
            env={"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            cwd="/",
            limit=_REPLY,
        )
        assert self._process.stdout is not None
        if await self._process.stdout.readline() != b"ready\n":
            await self.close()
            raise RunError(
                "the translator of MySQL's statements does not start",
                where="sqlite databases",
                remedy='see that sqlglot is installed: pip install "sqlglot>=30,<31"',
            )

    async def close(self) -> int | None:
        """End the process; return what it had ended with by itself, if it had."""
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 0.2)
        ended = process.returncode
        if ended is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        return ended
