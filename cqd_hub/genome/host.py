"""How much memory this machine has, and this process."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup/memory.max")


def whole_host_memory() -> int:
    """Bytes that the machine has, free or not."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_host_memory() -> int:
    """Bytes that this process may still take; what files are cached with counts as free."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        told = {name: value for name, _, value in (line.partition(":") for line in lines)}
        free = int(told["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        free = whole_host_memory()
    try:
        limit = int(_CGROUP.read_text()) - resident()
    except (OSError, ValueError):
        return free
    return min(free, max(limit, 0))


def resident() -> int:
    """Bytes of memory that this process has now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
