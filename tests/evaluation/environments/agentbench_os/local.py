"""A machine that is none: it runs the tests' own scripts here, in a temporary home.

It lets the rules of play be tested where no machine image is. Nothing written by a model, and
nothing of the real data, may run in it.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cqd_hub.evaluation.machines import (
    Language,
    Machine,
    MachineLimits,
    MachineLost,
    Machines,
    Printed,
    Ran,
)

_LIMITS = MachineLimits()


class LocalMachine(Machine):
    def __init__(self, home: Path, shell: asyncio.subprocess.Process, working: bool) -> None:
        self.home, self._shell, self._working = home, shell, working

    async def shell(self, command: str, *, seconds: float | None = None) -> Printed:
        if "LOSE THE MACHINE" in command:
            raise MachineLost("it was asked to go")
        mark = secrets.token_hex(8)
        command = command.replace("cd /root", "cd ~")  # which only root may enter
        text = base64.b64encode(command.encode()).decode()
        line = f'eval "$(base64 -d <<< {text})" </dev/null 2>&1; echo; echo {mark}\n'
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(line.encode())
        read = self._shell.stdout.readuntil(f"\n{mark}\n".encode())
        try:
            printed = await asyncio.wait_for(read, seconds or 30)
        except TimeoutError:
            return Printed("", "time")
        return Printed(printed.decode().removesuffix(f"\n{mark}\n"))

    async def run(
        self,
        script: str,
        *,
        language: Language = "bash",
        parameters: Sequence[str] = (),
        seconds: float | None = None,
    ) -> Ran:
        if not self._working:
            raise MachineLost("it never was")
        start = ["bash", "-c", script, "--"] if language == "bash" else ["python3", "-c", script]
        process = await asyncio.create_subprocess_exec(
            *start,
            *(str(self.home) if one == "/root" else one for one in parameters),
            cwd="/",
            env=environment(self.home),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return Ran(process.returncode, out.decode(), err.decode())

    async def close(self) -> None:
        os.killpg(self._shell.pid, signal.SIGKILL)
        await self._shell.wait()


class LocalMachines(Machines):
    kind = "local"
    guarantees = "nothing: for the tests' own scripts"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[LocalMachine] = []
        self.working = True

    async def start(self, limits: MachineLimits = _LIMITS) -> Machine:
        home = Path(tempfile.mkdtemp(dir=self.folder))
        shell = await asyncio.create_subprocess_exec(
            "bash",
            "--norc",
            cwd=home,
            env=environment(home),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self.started.append(LocalMachine(home, shell, self.working))
        return self.started[-1]

    async def close(self) -> None:
        pass


def environment(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
