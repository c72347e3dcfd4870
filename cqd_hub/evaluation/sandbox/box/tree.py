"""The processes of an answer, as the box's first process sees them in /proc."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from typing import NamedTuple

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Sample(NamedTuple):
    tasks: int  # processes and threads
    cpu_seconds: float  # of those alive and of the dead they waited for
    resident: int  # bytes, shared pages counted once per process
    wants_cpu: bool  # some task runs, waits for a core, or waits for a device


def _fields(path: str) -> list[bytes]:
    with open(path, "rb") as file:
        return file.read().rpartition(b")")[2].split()


def members(own_namespace: bool) -> list[int]:
    """Process ids of the answer's tree: all but this process, or this process's descendants."""
    if own_namespace:
        me = os.getpid()
        return [pid for name in os.listdir("/proc") if name.isdigit() and (pid := int(name)) != me]
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        parent = queue.pop()
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children", "rb") as file:
                    children = [int(word) for word in file.read().split()]
                found += children
                queue += children
    return found


def sample(own_namespace: bool) -> Sample:
    tasks, ticks, resident, wants = 0, 0, 0, False
    for pid in members(own_namespace):
        try:
            fields = _fields(f"/proc/{pid}/stat")
            threads = int(fields[17])
            states = [fields[0]]
            if threads > 1:
                names = os.listdir(f"/proc/{pid}/task")
                states = [_fields(f"/proc/{pid}/task/{name}/stat")[0] for name in names]
        except (OSError, IndexError):  # it ended meanwhile
            continue
        tasks += threads
        ticks += sum(int(word) for word in fields[11:15])
        resident += int(fields[21]) * _PAGE
        wants = wants or any(state in b"RD" for state in states)
    waited = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = ticks / _TICK + waited.ru_utime + waited.ru_stime
    return Sample(tasks, cpu, resident, wants)


def proportional_memory(own_namespace: bool) -> int:
    """Bytes held by the tree with shared pages counted once; slower than `sample`."""
    total = 0
    for pid in members(own_namespace):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    total += int(line.split()[1]) << 10
                    break
    return total


def end_all(own_namespace: bool, uid: int | None) -> bool:
    """Kill the whole tree and wait for it; False if something survives five seconds.

    With a pid namespace, or as the answer's own user, one kill(-1) reaches every process at once.
    Otherwise descendants are first forbidden to fork, so that killing overtakes forking.
    """
    if own_namespace:
        if os.getpid() != 1:
            raise RuntimeError("not the first process of a namespace: kill(-1) would leave the box")
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
    elif uid is not None:
        killer = os.fork()
        if killer == 0:
            try:
                os.setresuid(uid, uid, uid)
                os.kill(-1, signal.SIGKILL)
            finally:
                os._exit(0)
        os.waitpid(killer, 0)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, 0 if own_namespace else os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        for pid in members(own_namespace):
            with contextlib.suppress(OSError):
                resource.prlimit(pid, resource.RLIMIT_NPROC, (0, 0))
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.0005)
    return False
