"""The processes below one, by the parent that each one names.

A kernel's own list of children leaves some out while others of them end.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def children(parent: int | None = None) -> list[int]:
    """Ids of the processes that *parent*, or this process, started and has not waited for."""
    wanted = str(os.getpid() if parent is None else parent)
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if path.read_text().rpartition(")")[2].split()[1] == wanted:
                found.append(int(path.parent.name))
    return found


def kill_tree(root: int) -> None:
    """Kill *root* and all below it; parents first, so that none is replaced."""
    found = [root]
    for pid in found:
        found += children(pid)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):  # one's end may end another
            os.kill(pid, signal.SIGKILL)
