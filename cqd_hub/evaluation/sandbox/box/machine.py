"""The first process of a machine: holds its login shell, runs scripts, ends what takes too long.

What runs in the machine is root there and may change every file, so all that is needed is imported
before the first command. Beyond its reach is this process: first of its pid namespace, so that no
signal from inside ends it, and not dumpable, so that its memory and descriptors stay closed.

Requests: ``{"kind": "shell", "text", "seconds"}`` and ``{"kind": "run",
"argv", "seconds"}``; a reply of ``{"lost": reason}`` is the machine's last.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import time
from collections.abc import Iterable, Mapping
from typing import Any

from . import kernel, layers, seccomp
from .frames import read_frame, write_frame
from .login import CONTROL, FLOOD, NOISE, Command, Shell, Tap, processes, read_some, tree

LEFT_OPEN = 64  # pipes kept for what scripts left in the background
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "TERM": "dumb",
}


class Lost(Exception):
    """The machine can do nothing more."""


def main(config: Mapping[str, Any]) -> None:
    """Serve requests until standard input ends.

    Args:
        config: `limits`, `memory` (bytes that one process may have, None where the machine's
            memory is bounded as a whole), `container` (move to a root file system of its own).
    """
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        if config["container"]:
            layers.move_in(config["limits"])
        else:  # bubblewrap sets it too, and loses it when it changes capabilities
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.bound_capabilities(layers.RIGHTS.values())
        seccomp.install(seccomp.assemble(sockets=True))
        agent = Agent(config)
        write_frame({"ready": True})
        agent.serve()
    except (Lost, OSError) as error:
        write_frame({"lost": str(error)})
    os._exit(0)


class Agent:
    """Serves one machine; see `main`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.limits, self.memory = config["limits"], config["memory"]
        self.statuses: dict[int, int | None] = {}  # of the processes started here
        self.left: list[int] = []
        self.last = 0  # how the shell's last command ended
        self.wake, writer = os.pipe()
        for end in (self.wake, writer):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self.shell: Shell | None = self._new_shell()

    def serve(self) -> None:
        while True:
            if 0 not in self.wait([0], None):
                continue
            request = read_frame()
            if request is None:
                return
            most = self.limits["output_bytes"]
            if request["kind"] == "shell":
                write_frame(self._command(request["text"], request["seconds"], most))
            else:
                write_frame(self._script(request["argv"], request["seconds"], most))

    # waiting

    def wait(self, readers: Iterable[int], seconds: float | None) -> list[int]:
        """Wait for any of *readers*, a child's end or the time; return the readers with something.

        Ends this process, and the machine with it, when the host is gone.
        """
        poll = select.poll()
        for number in (*readers, self.wake):
            poll.register(number, select.POLLIN)
        if 0 not in readers:
            poll.register(0, 0)  # reports only that the host is gone
        found = []
        for number, _ in poll.poll(None if seconds is None else max(0.0, seconds) * 1000):
            if number == self.wake:
                with contextlib.suppress(BlockingIOError):
                    os.read(self.wake, 4096)
            elif number == 0 and 0 not in readers:
                os._exit(0)
            else:
                found.append(number)
        self._reap()
        return found

    def _reap(self) -> None:
        """Bury the dead, those too whose parents ended before them."""
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] in self.statuses:
                    self.statuses[found[0]] = os.waitstatus_to_exitcode(found[1])

    # starting

    def _start(self, argv: list[str], descriptors: Mapping[int, int], place: str) -> int:
        try:
            pid = os.fork()
        except OSError as error:
            raise Lost(f"no process can be started: {error.strerror}") from None
        if pid == 0:
            try:
                self._become(descriptors, place)
                os.execve(argv[0], argv, ENVIRONMENT)
            except BaseException as error:
                os.write(2, f"{argv[0]}: {error}\n".encode("utf-8", "replace"))
            finally:
                os._exit(126)
        self.statuses[pid] = None
        return pid

    def _become(self, descriptors: Mapping[int, int], place: str) -> None:
        os.setsid()
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # rather this process than the agent
        for target, source in descriptors.items():
            os.dup2(source, target)
        os.chdir(place)
        os.umask(0o022)
        bounds = [
            (resource.RLIMIT_NPROC, self.limits["processes"]),
            (resource.RLIMIT_CPU, int(self.limits["cpu_seconds"]) + 1),
            (resource.RLIMIT_FSIZE, self.limits["disk_mb"] << 20),
            (resource.RLIMIT_NOFILE, 1024),
            (resource.RLIMIT_MEMLOCK, 1 << 16),
            (resource.RLIMIT_MSGQUEUE, 0),
            (resource.RLIMIT_CORE, 0),
        ]
        if self.memory is not None:
            bounds += [
                (resource.RLIMIT_DATA, self.memory),
                (resource.RLIMIT_AS, max(4 * self.memory, 1 << 30)),
            ]
        for kind, value in bounds:
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))

    # scripts

    def _script(self, argv: list[str], seconds: float, most: int) -> dict[str, Any]:
        pipes = [os.pipe(), os.pipe()]
        nothing = os.open("/dev/null", os.O_RDONLY)
        before = processes()
        descriptors = {0: nothing, 1: pipes[0][1], 2: pipes[1][1]}
        try:
            pid = self._start(argv, descriptors, "/")
        finally:
            for number in descriptors.values():
                os.close(number)
        taps = [Tap(reader, most) for reader, _ in pipes]
        deadline = time.monotonic() + seconds
        while self.statuses[pid] is None:
            # Ended with its first process: what that left behind may hold the pipes for ever.
            now = time.monotonic()
            if now > deadline or sum(tap.seen for tap in taps) > FLOOD:
                self._kill(pid, before)
                del self.statuses[pid]
                code = None
                break
            ready = self.wait([tap.reader for tap in taps if not tap.ended], deadline - now)
            for tap in taps:
                if tap.reader in ready:
                    tap.take()
        else:
            code = self.statuses.pop(pid)
        for tap in taps:
            tap.drain()
            # Closed, it would end what writes to it later.
            self.left.append(tap.reader)
        while len(self.left) > LEFT_OPEN:
            os.close(self.left.pop(0))
        return {"exit": code, "stdout": taps[0].text, "stderr": taps[1].text}

    def _kill(self, root: int, before: Mapping[int, tuple[int, int]]) -> None:
        """End *root*, its session and its descendants, but for processes of *before*."""
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            found = [pid for pid in tree(root) if pid not in before]
            if not found:
                return
            for pid in found:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            self._reap()
            time.sleep(0.002)

    # the login shell

    def _new_shell(self) -> Shell:
        inputs, outputs, control = os.pipe(), os.pipe(), os.pipe()
        given = {0: inputs[0], 1: outputs[1], 2: outputs[1], CONTROL: control[1]}
        try:
            # Interactive as on a terminal: errors do not end it, interrupts neither.
            pid = self._start(["/bin/bash", "--noediting", "--login", "-i"], given, "/root")
        finally:
            for number in set(given.values()):
                os.close(number)
        shell = Shell(pid, inputs[1], outputs[0], control[0])
        for number in shell[1:]:
            os.set_blocking(number, False)
        token = os.urandom(8).hex()
        os.write(shell.input, f"set +o history; PS1= PS2=; echo {token} 0 >&{CONTROL}\n".encode())
        told, deadline = bytearray(), time.monotonic() + 20
        while f"{token} 0".encode() not in told:
            left = deadline - time.monotonic()
            if self.statuses[pid] is not None or left < 0:
                raise Lost("the login shell does not start")
            for number in self.wait([shell.control, shell.output], left):
                data = read_some(number)
                if number == shell.control:
                    told += data
        Tap(shell.output, 0).drain()
        return shell

    def _command(self, text: str, seconds: float, most: int) -> dict[str, Any]:
        if self.shell is None:
            self.shell = self._new_shell()
        command = Command(self, self.shell, text, most)
        ended = command.finish(seconds)
        if ended == "shell" or not command.idle:
            self._drop_shell()
        return {"text": NOISE.sub("", command.tap.text), "ended": ended}

    def _drop_shell(self) -> None:
        assert self.shell is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.shell.pid, signal.SIGKILL)
        self.statuses.pop(self.shell.pid, None)
        os.close(self.shell.input)
        os.close(self.shell.control)
        self.left.append(self.shell.output)
        self.shell, self.last = None, 0
