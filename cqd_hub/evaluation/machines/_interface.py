"""A small Linux machine that an agent may break: root inside, nothing of the host."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NamedTuple, Self

Language = Literal["bash", "python"]


@dataclass(frozen=True)
class MachineLimits:
    """Bounds of one machine, everything in it together.

    Attributes:
        command_seconds: Elapsed time of one command or script.
        cpu_seconds: CPU time of one process.
        machine_seconds: Elapsed time from start to end.
        memory_mb: MiB of the machine where there are cgroups; else of each process.
        processes: Processes and threads.
        disk_mb: MiB written.
        files: Files and folders made.
        output_bytes: Of what one command prints this much is kept, the rest is read and dropped.
    """

    command_seconds: float = 30.0
    cpu_seconds: float = 120.0
    machine_seconds: float = 300.0
    memory_mb: int = 512
    processes: int = 128
    disk_mb: int = 256
    files: int = 20_000
    output_bytes: int = 65536


class Ran(NamedTuple):
    """What a script of its own process gave; *exit_code* is None when it was ended by a limit."""

    exit_code: int | None
    stdout: str
    stderr: str


class Printed(NamedTuple):
    """What a command in the login shell printed, both streams in order.

    Args:
        text: As it was written, undecodable bytes replaced: pass it through `printable` before
            showing it on a terminal.
        ended: Empty, or what cut it short: ``"time"``, ``"output"``, ``"shell"`` (the shell ended).
    """

    text: str
    ended: str = ""


class MachineLost(Exception):
    """The machine died, hung or spoke nonsense.

    Args:
        detail: What is known, printable.
    """


class Machine(abc.ABC):
    """A started machine. Not for concurrent use; `close` it whatever happens."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @abc.abstractmethod
    async def shell(self, command: str, *, seconds: float | None = None) -> Printed:
        """Run *command* in the one login shell (`bash --login`, in /root), whose state stays.

        The shell was started before anything else ran in the machine. A command beyond its time is
        ended, the shell with what it had set stays where that is possible.

        Raises:
            MachineLost: close this machine and start another.
        """

    @abc.abstractmethod
    async def run(
        self,
        script: str,
        *,
        language: Language = "bash",
        parameters: Sequence[str] = (),
        seconds: float | None = None,
    ) -> Ran:
        """Run *script* in a process of its own, cwd /: ``bash -c SCRIPT -- p1 p2 …`` or
        ``python3 -c SCRIPT p1 p2 …``. What it leaves in the background lives on.

        Raises:
            MachineLost: close this machine and start another.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """End the machine and every process in it."""


class Machines(abc.ABC):
    """One way to have machines, opened once.

    Attributes:
        kind: ``bubblewrap-…`` or ``docker-…`` with a digest of the image: what is installed decides
            what a task gives.
        guarantees: One line for the manifest: what is bounded and what is not.
        single_user: Root is the only user, so `chown`, `su` and apt's own user fail.
    """

    kind: str
    guarantees: str
    single_user: bool = False

    @abc.abstractmethod
    async def start(self, limits: MachineLimits = MachineLimits()) -> Machine:
        """A fresh machine of the image, its login shell waiting.

        Raises:
            RunError: None can be started.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """End every machine."""
