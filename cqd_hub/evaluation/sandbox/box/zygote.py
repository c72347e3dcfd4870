"""A worker's inside: one warm interpreter that gives birth to a fresh box per answer.

    zygote ──fork──> keeper (first process of the box) ──fork──> answer

The zygote only forks and waits: it never reads a request, so no answer's text is ever in its
memory. The keeper builds the box (own user, pid, mount and ipc namespaces where there are any),
reads one request, starts the answer, watches its limits, ends its whole tree and reports. It is
beyond the answer's reach: first of its pid namespace, not dumpable, more capable (or of another
user, or outside the answer's Landlock domain).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

from . import answer, folder, kernel, landlock, seccomp, tree
from .frames import read_frame, write_frame

PERIOD = 0.025  # seconds between two looks at the tree
USER = 1000  # the answer's user id inside a user namespace
# Imported once here, so that an answer finds them loaded.
WARM = (
    "abc array base64 bisect cmath collections collections.abc copy dataclasses datetime decimal "
    "enum fractions functools hashlib heapq itertools json math numbers operator random re sqlite3 "
    "statistics string sys textwrap time types typing"
)


def main(config: Mapping[str, Any]) -> None:
    """Serve requests until standard input ends.

    Args:
        config: `kind` (bubblewrap, landlock, container), `folder` (landlock: the private folder),
            `uid` (landlock as root: the answer's user), `library` (landlock: paths the interpreter
            needs), `hidden` (landlock: paths to leave out of what is readable), `once` (serve one
            request in this very process).
    """
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33, signal.SIGCHLD, signal.SIGXFSZ):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    while os.open("/dev/null", os.O_RDONLY) < answer.REPLY:  # keep the answer's numbers taken
        pass
    box = Box(config)
    for name in WARM.split():
        with contextlib.suppress(ImportError):  # a small image may lack sqlite3
            importlib.import_module(name)
    if config["once"]:
        os._exit(box.serve())
    gc.collect()
    gc.freeze()
    while True:
        pid = kernel.fork_into(box.namespaces) if box.namespaces else os.fork()
        if pid == 0:
            code = 1
            try:
                code = box.serve()
            except BaseException as error:
                os.write(2, f"{type(error).__name__}: {error}\n".encode("utf-8", "replace"))
            finally:
                os._exit(code)
        if (code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) != 0:
            os._exit(0 if code == Box.ENDED else 1)


class Box:
    """One answer's box; built in the zygote, used in each keeper."""

    ENDED = 3  # exit code of a keeper whose standard input ended

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.kind = config["kind"]
        self.namespaces = 0
        self.rules: int | None = None
        self.uid: int | None = config.get("uid")
        self.own_namespace = self.kind != "landlock"
        self.root: str = config.get("folder", "")
        self.filter: dict[str, Any] = {}
        self.own_signals_only = False
        if self.kind == "bubblewrap":
            self.namespaces = (
                kernel.CLONE_NEWUSER
                | kernel.CLONE_NEWPID
                | kernel.CLONE_NEWNS
                | kernel.CLONE_NEWIPC
            )
        elif self.kind == "landlock":
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
            if self.uid is not None:
                _reach_library_by_descriptor()
            self.rules = landlock.ruleset(config["library"], [self.root], config["hidden"])
            if self.uid is None:
                abi = landlock.version()
                self.filter = {"launchers_user": True, "truncate": abi >= 3}
                self.own_signals_only = abi < 6
        self.program = seccomp.assemble(**self.filter)

    def serve(self) -> int:
        if self.kind == "bubblewrap":
            self._enter_namespaces()
        elif self.kind == "landlock":
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        request = read_frame()
        if request is None:
            return self.ENDED
        try:
            work, temporary = self._furnish(request)
        except OSError as error:
            write_frame({"end": "setup", "detail": f"the box cannot be furnished: {error}"})
            return 1
        reply = Keeper(self, request, work, temporary).run()
        if self.kind == "landlock":
            folder.empty(self.root)
        write_frame(reply)
        return 0

    def _enter_namespaces(self) -> None:
        for path, content in (
            ("/proc/self/setgroups", "deny"),
            ("/proc/self/gid_map", f"{USER} {USER} 1"),
            ("/proc/self/uid_map", f"{USER} {USER} 1"),
            ("/proc/sys/user/max_user_namespaces", "0"),
        ):
            with open(path, "w") as file:
                file.write(content)
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
        kernel.mount("proc", "/proc", "proc", flags)

    def _furnish(self, request: Mapping[str, Any]) -> tuple[str, str]:
        """Make the answer's working and temporary folders; return their paths."""
        limits = request["limits"]
        work, temporary = "/work", "/tmp"
        if self.kind == "bubblewrap":
            options = f"size={limits['disk_mb']}m,nr_inodes={limits['files'] + 3},mode=755"
            flags = kernel.MS_NOSUID | kernel.MS_NODEV
            kernel.mount("tmpfs", "/work", "tmpfs", flags, options)
            for name, place in (("tmp", "/tmp"), ("work", "/work")):
                os.mkdir(f"/work/{name}", 0o755)
                kernel.mount(f"/work/{name}", place, None, kernel.MS_BIND)
        elif self.kind == "landlock":
            folder.empty(self.root)
            work, temporary = f"{self.root}/work", f"{self.root}/tmp"
            for place in (work, temporary):
                os.mkdir(place, 0o700)
        folder.write_tree(work, request.get("files", {}))
        if self.uid is not None:
            for place, folders, files in os.walk(self.root):
                for name in (".", *folders, *files):
                    os.chown(os.path.join(place, name), self.uid, self.uid)
        return work, temporary


class Keeper:
    """Runs one answer and watches it; see `run`."""

    def __init__(self, box: Box, request: Mapping[str, Any], work: str, temporary: str) -> None:
        self.box, self.request, self.work, self.temporary = box, request, work, temporary
        self.limits = request["limits"]
        self.texts: dict[str, bytearray] = {}

    def run(self) -> dict[str, Any]:
        """Return the report: `end` (how it ended), exit code, CPU seconds, texts and files.

        `end` is one of exit, cpu, memory, output, tasks, disk, wall, blocked.
        """
        began = time.monotonic()
        pipes = {name: os.pipe() for name in ("stdout", "stderr", "reply")}
        pid = os.fork()
        if pid == 0:
            try:
                self._become_answer({name: ends[1] for name, ends in pipes.items()})
            except BaseException as error:
                os.write(2, f"{type(error).__name__}: {error}".encode("utf-8", "replace"))
            finally:
                os._exit(125)
        for _, writer in pipes.values():
            os.close(writer)
        readers = {ends[0]: name for name, ends in pipes.items()}
        self.texts = {name: bytearray() for name in pipes}
        end, code = self._watch(pid, readers, began)
        if not tree.end_all(self.box.own_namespace, self.box.uid):
            raise RuntimeError("a process of the answer cannot be ended")
        if not self._drain(readers) and end == "exit":
            end = "output"
        usage = getrusage(RUSAGE_CHILDREN)
        cpu = usage.ru_utime + usage.ru_stime
        if end == "exit" and (cpu > self.limits["cpu_seconds"] or code == -signal.SIGXCPU):
            end = "cpu"
        report: dict[str, Any] = {"end": end, "exit": code, "cpu": cpu}
        ready = self.texts["reply"][: len(answer.READY)] == answer.READY
        if end == "exit" and not ready:
            detail = self.texts["stderr"].decode("utf-8", "replace")
            return {"end": "setup", "detail": f"the answer's process cannot be set up: {detail}"}
        del self.texts["reply"][: len(answer.READY)]
        if end == "exit":
            report |= {name: text.decode("utf-8", "replace") for name, text in self.texts.items()}
            if self.request["kind"] == "shell":
                report |= self._effects()
        return report

    def _become_answer(self, ends: Mapping[str, int]) -> None:
        nothing = os.open("/dev/null", os.O_RDONLY)
        for source, target in (
            (nothing, 0),
            (ends["stdout"], 1),
            (ends["stderr"], 2),
            (ends["reply"], answer.REPLY),
        ):
            # Sources lie above 3, because the zygote keeps 0 to 3 occupied.
            os.dup2(source, target, inheritable=target != answer.REPLY)
        keep = [number for number in (self.box.rules, _library) if number is not None]
        last = answer.REPLY
        for number in sorted(keep):
            os.closerange(last + 1, number)
            last = number
        os.closerange(last + 1, 1 << 16)
        os.chdir(self.work)
        tasks = self.limits["processes"] + 1  # the keeper
        if self.box.kind == "container":
            tasks = 1 << 20  # the engine limits it, and this user may exist outside
        if self.box.kind == "landlock" and self.box.uid is None:
            tasks += _tasks_of_user() + 64  # others of the user come and go; `_watch` is exact
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": self.work,
            "TMPDIR": self.temporary,
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "PYTHONHASHSEED": "0",
        }
        if "random" in sys.modules:
            sys.modules["random"].seed(0)
        program = self.box.program
        if self.box.own_signals_only:
            program = seccomp.assemble(**self.box.filter, only_signal=os.getpid())
        answer.become_powerless(
            {**self.limits, "tasks": tasks},
            environment,
            program,
            rules=self.box.rules,
            uid=self.box.uid,
        )
        answer.run(self.request)

    def _watch(self, pid: int, readers: dict[int, str], began: float) -> tuple[str, int | None]:
        limits = self.limits
        ended = os.pidfd_open(pid)
        poll = select.poll()
        for number in (*readers, ended):
            poll.register(number, select.POLLIN)
        poll.register(0, 0)  # reports only that the host is gone
        next_look = began + PERIOD
        looks = wanting = 0
        try:
            while True:
                for number, event in poll.poll(max(0, next_look - time.monotonic()) * 1000):
                    if number == 0:
                        tree.end_all(self.box.own_namespace, self.box.uid)
                        os._exit(Box.ENDED)
                    if number == ended:
                        status = os.waitpid(pid, 0)[1]
                        return "exit", os.waitstatus_to_exitcode(status)
                    if not self._take(number, readers[number]):
                        return "output", None
                    if event & select.POLLHUP and not event & select.POLLIN:
                        poll.unregister(number)
                now = time.monotonic()
                if now < next_look:
                    continue
                next_look = now + PERIOD
                look = tree.sample(self.box.own_namespace)
                looks += 1
                wanting += look.wants_cpu
                if look.cpu_seconds > limits["cpu_seconds"]:
                    return "cpu", None
                memory = limits["memory_mb"] << 20
                if (
                    look.resident > memory
                    and tree.proportional_memory(self.box.own_namespace) > memory
                ):
                    return "memory", None
                if self.box.kind == "landlock":
                    if look.tasks > limits["processes"]:
                        return "tasks", None
                    taken, entries = folder.usage(self.box.root, limits["files"] + 2)
                    if taken > limits["disk_mb"] << 20 or entries > limits["files"] + 2:
                        return "disk", None
                elapsed = now - began
                if elapsed > limits["wall_seconds"]:
                    # Asleep for so long that even an idle machine would not have seen it finish.
                    wanted = elapsed * wanting / looks
                    fair = min(limits["cpu_seconds"], 0.5 * limits["wall_seconds"])
                    return ("blocked" if looks >= 5 and wanted < fair else "wall"), None
        finally:
            os.close(ended)

    def _take(self, number: int, name: str) -> bool:
        """Read what a pipe holds now; False beyond the output limit."""
        self.texts[name] += os.read(number, 1 << 16)
        printed = len(self.texts["stdout"]) + len(self.texts["stderr"])
        return max(printed, len(self.texts["reply"])) <= self.limits["output_bytes"]

    def _drain(self, readers: Mapping[int, str]) -> bool:
        """Read the pipes to their end; every writer is dead, so this cannot wait."""
        for number, name in readers.items():
            size = -1
            while size != len(self.texts[name]):
                size = len(self.texts[name])
                if not self._take(number, name):
                    return False
        return True

    def _effects(self) -> dict[str, Any]:
        try:
            return folder.read_tree(self.work, self.limits["output_bytes"])
        except folder.TooLarge:
            return {"end": "output"}
        except (OSError, RecursionError) as error:
            return {"end": "unreadable", "stderr": f"{type(error).__name__}"}


_library: int | None = None


def _reach_library_by_descriptor() -> None:
    """Let another user import the standard library though it lies in a closed folder (/root)."""
    global _library
    place = os.path.dirname(os.__file__)
    _library = os.open(place, os.O_PATH | os.O_DIRECTORY)
    alias = f"/proc/self/fd/{_library}"
    sys.path = [path.replace(place, alias) for path in sys.path if path.startswith(place)]
    for module in list(sys.modules.values()):
        if path := getattr(module, "__path__", None):
            module.__path__ = [entry.replace(place, alias) for entry in path]
    sys.path_importer_cache.clear()


def _tasks_of_user() -> int:
    """Threads this user runs on the whole machine, which RLIMIT_NPROC counts together."""
    me, count = os.getuid(), 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid == me:
                    count += os.stat(f"/proc/{entry.name}/task").st_nlink - 2
    return count
