"""The host's end of a machine's first process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cqd_hub.evaluation.sandbox import printable
from cqd_hub.evaluation.sandbox._start import first_frame, frame
from cqd_hub.evaluation.sandbox._worker import last_words

from ._interface import Language, Machine, MachineLimits, MachineLost, Printed, Ran

MODULES = ("kernel", "seccomp", "layers", "frames", "login", "machine")
PATIENCE = 20.0  # seconds past a command's time until the machine counts as hung
START = 90.0
_ENDED = ("", "time", "output", "shell")
# JSON writes a byte as up to six letters.
_LETTERS = 6


def agent_frame(limits: dict[str, Any], *, memory: int | None, container: bool) -> bytes:
    return first_frame({"limits": limits, "memory": memory, "container": container}, MODULES)


class AgentMachine(Machine):
    """A machine whose first process is `box.machine`, spoken to over a process's pipes.

    Args:
        process: What was started; its end is the machine's.
        limits: Of the machine.
        end: Ends the machine and what belongs to it.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        limits: MachineLimits,
        end: Callable[[], Awaitable[None]],
    ) -> None:
        self._process, self._limits, self._end = process, limits, end
        self._most = 2 * _LETTERS * limits.output_bytes + 4096
        self._deadline: float | None = None
        self._lost = ""
        self.forget: Callable[[AgentMachine], None] = lambda machine: None

    async def ready(self) -> None:
        """Wait for the login shell.

        Raises:
            MachineLost: It does not work; the message is what was printed last.
        """
        if "ready" not in await self._receive(START):
            raise self._gone("the machine spoke nonsense")

    def hand_out(self) -> None:
        """Start the clock of the machine's time."""
        self._deadline = asyncio.get_running_loop().time() + self._limits.machine_seconds

    async def shell(self, command: str, *, seconds: float | None = None) -> Printed:
        reply = await self._ask({"kind": "shell", "text": command}, seconds)
        text, ended = reply.get("text"), reply.get("ended")
        if not isinstance(text, str) or ended not in _ENDED:
            raise self._gone("the machine spoke nonsense")
        return Printed(text, ended)

    async def run(
        self,
        script: str,
        *,
        language: Language = "bash",
        parameters: Sequence[str] = (),
        seconds: float | None = None,
    ) -> Ran:
        program = "/bin/bash" if language == "bash" else "/usr/bin/python3"
        words = [program, "-c", script, *(("--",) if language == "bash" else ()), *parameters]
        # No program's argument holds a null character, nor half a character.
        argv = [word.replace("\0", "").encode("utf-8", "replace").decode() for word in words]
        reply = await self._ask({"kind": "run", "argv": argv}, seconds)
        code, out, errors = reply.get("exit"), reply.get("stdout"), reply.get("stderr")
        if not (isinstance(code, int | None) and isinstance(out, str) and isinstance(errors, str)):
            raise self._gone("the machine spoke nonsense")
        return Ran(code, out, errors)

    async def _ask(self, request: dict[str, Any], seconds: float | None) -> dict[str, Any]:
        if self._lost:
            raise MachineLost(self._lost)
        request["seconds"] = seconds or self._limits.command_seconds
        patience = request["seconds"] + PATIENCE
        if self._deadline is not None:
            patience = min(patience, self._deadline - asyncio.get_running_loop().time())
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(frame(request))
            return await self._receive(patience)
        except asyncio.CancelledError:
            self._lost = "a command was given up"
            raise

    async def _receive(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                (length,) = struct.unpack(">I", await self._process.stdout.readexactly(4))
                if length > self._most:
                    raise ValueError("a reply longer than any")
                reply = json.loads(await self._process.stdout.readexactly(length))
                if not isinstance(reply, dict):
                    raise ValueError("not a reply")
        except TimeoutError:
            spent = (
                self._deadline is not None
                and asyncio.get_running_loop().time() >= self._deadline - 0.1
            )
            limit = f"over its {self._limits.machine_seconds:g} s"
            raise self._gone(limit if spent else "the machine hung") from None
        except (OSError, EOFError, ValueError, RecursionError):
            raise self._gone(await last_words(self._process)) from None
        if "lost" in reply:
            raise self._gone(str(reply["lost"]))
        return reply

    def _gone(self, detail: str) -> MachineLost:
        self._lost = printable(detail)
        return MachineLost(self._lost)

    async def close(self) -> None:
        self._lost = self._lost or "closed"
        self.forget(self)
        await self._end()


async def end_process(
    process: asyncio.subprocess.Process, seconds: float, *, ask: bool = True
) -> bool:
    """Close a launcher's input and ask it to end; False if it did not, and was killed."""
    assert process.stdin is not None
    process.stdin.close()
    if ask:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    try:
        await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        return False
    return True
