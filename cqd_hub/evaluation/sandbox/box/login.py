"""A machine's login shell: one command at a time, its end told apart from what it prints."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterable
from typing import NamedTuple, Protocol

CONTROL = 247  # the descriptor on which the login shell says that a command is over
PIPE = 1 << 20  # no pipe holds more
FLOOD = 64 << 20  # bytes printed by one command that end it
ROUNDS = 6  # interruptions before a shell counts as beyond hope


class Waits(Protocol):
    """What a command needs of the machine's first process."""

    last: int
    statuses: dict[int, int | None]

    def wait(self, readers: Iterable[int], seconds: float | None) -> list[int]: ...


class Shell(NamedTuple):
    pid: int
    input: int
    output: int
    control: int


class Command:
    """One command in the login shell.

    Two lines are sent: the command with its end, and an end again, for errors and interrupts skip
    the rest of the line they happen in. Ends are told on a descriptor of their own, so nothing
    that is printed can look like one.
    """

    def __init__(self, agent: Waits, shell: Shell, text: str, most: int) -> None:
        self.agent, self.shell = agent, shell
        Tap(shell.output, 0).drain()
        self.tap = Tap(shell.output, most)
        self.before = processes()
        self.token = os.urandom(8).hex()
        if agent.last:
            text = f"(exit {agent.last})\n{text}"  # what $? was before the end was told
        first = f"builtin eval {quoted(text)} </dev/null; {self._end(1)}"
        self.unsent = f"{first}\n{self._end(2)}\n".encode("utf-8", "replace")
        self.told = bytearray()
        self.over = self.idle = False

    def _end(self, number: int) -> str:
        return f"builtin printf '%s %s\\n' {self.token}.{number} $? >&{CONTROL}; PS1= PS2="

    def finish(self, seconds: float) -> str:
        """Wait for its end; return the word for how it ended (see `Printed`)."""
        deadline = time.monotonic() + seconds
        while True:
            state = self._turn(deadline - time.monotonic())
            if state:
                return "" if state == "idle" else state
            if self.tap.seen > FLOOD or time.monotonic() > deadline:
                break
        ended = "output" if self.tap.seen > FLOOD else "time"
        self.tap.most = len(self.tap.kept)
        for number in range(3, 3 + ROUNDS):
            self._interrupt()
            self.unsent += f"{self._end(number)}\n".encode()
            pause = time.monotonic() + 0.1 * number
            while time.monotonic() < pause:
                if self._turn(pause - time.monotonic()):
                    return ended
        return ended

    def _interrupt(self) -> None:
        for pid in tree(self.shell.pid):
            if pid not in self.before:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.kill(self.shell.pid, signal.SIGINT)

    def _turn(self, seconds: float) -> str:
        """Wait once; return ``idle``, ``shell`` or, while it goes on, nothing."""
        if self.unsent:
            try:
                self.unsent = self.unsent[os.write(self.shell.input, self.unsent) :]
            except BlockingIOError:
                pass
            except OSError:
                return "shell"
            seconds = min(seconds, 0.01) if self.unsent else seconds
        readers = [self.shell.control] if self.tap.ended else [self.shell.control, self.tap.reader]
        ready = self.agent.wait(readers, seconds)
        if self.tap.reader in ready and not self.over:
            self.tap.take()
        if self.shell.control in ready:
            self.told = (self.told + read_some(self.shell.control))[-PIPE:]
            ends = _ENDS.findall(self.told.replace(self.token.encode(), b"\0"))
            if ends and not self.over:
                self.tap.drain()
                self.agent.last = int(ends[0][1])
                self.over = True
            if any(int(number) > 1 for number, _ in ends):
                self.idle = True
                return "idle"
        if self.agent.statuses.get(self.shell.pid) is not None:
            self.tap.drain()
            return "shell"
        return ""


class Tap:
    """A pipe's reading end: the first *most* bytes are kept, the rest is read and dropped."""

    def __init__(self, reader: int, most: int) -> None:
        os.set_blocking(reader, False)
        self.reader, self.most = reader, most
        self.kept, self.seen, self.ended = bytearray(), 0, False

    def take(self) -> int:
        """Read what is there; return how much."""
        try:
            data = os.read(self.reader, 1 << 16)
        except BlockingIOError:
            return 0
        self.ended = not data
        self.seen += len(data)
        self.kept += data[: max(0, self.most - len(self.kept))]
        return len(data)

    def drain(self) -> None:
        """Read what was written until now, for others may go on writing."""
        left = PIPE
        while left > 0 and (taken := self.take()):
            left -= taken

    @property
    def text(self) -> str:
        return self.kept.decode("utf-8", "replace")


def quoted(text: str) -> str:
    """*text* as one word of bash on one line: no quoting state, no history expansion."""
    return "$'" + "".join(_ESCAPES.get(letter, letter) for letter in text) + "'"


_ENDS = re.compile(rb"\0\.([0-9]{1,3}) ([0-9]{1,3})\n")
# An interactive shell without a terminal says so whenever a signal ends a command.
NOISE = re.compile(r"(?m)^bash: \[\d+: \d+ \(\d+\)\] tcsetattr: .*\n")
_ESCAPES = {chr(code): f"\\{code:03o}" for code in (*range(1, 32), 127, *b"'\\!")} | {"\0": ""}


def read_some(number: int) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return os.read(number, 1 << 16)
    return b""


def processes() -> dict[int, tuple[int, int]]:
    """Process id → (parent, session) of all in the machine."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                if fields[0] != b"Z":
                    found[int(name)] = (int(fields[1]), int(fields[3]))
    return found


def tree(root: int) -> list[int]:
    """Living descendants of *root* and all of its session, which a shell is not itself part of."""
    known = processes()
    found = {root} if root in known else set()
    found |= {pid for pid, (_, session) in known.items() if session == root}
    grown = True
    while grown:
        more = {pid for pid, (parent, _) in known.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return sorted(found - {1})
