"""A control group for one machine, of version 1 or 2, where the launcher may make one."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from typing import Any

MOUNTS = "/proc/self/mountinfo"
AGENT_MB = 64  # for the machine's first process
AGENT_TASKS = 3  # it and bubblewrap
_PREFIX = "cqd-hub-machine-"


def make(limits: Mapping[str, Any]) -> list[str]:
    """Return the folders of a new control group that bounds memory and processes; [] without.

    What is written counts as memory, because it lies in memory.
    """
    name = f"{_PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
    memory = limits["memory_mb"] + limits["disk_mb"] + AGENT_MB
    tasks = limits["processes"] + AGENT_TASKS
    made: list[str] = []
    try:
        for parent, bounds in _parents(memory << 20, tasks):
            _sweep(parent)
            folder = os.path.join(parent, name)
            if folder not in made:
                os.mkdir(folder)
                made.append(folder)
            for file, value, needed in bounds:
                _set(os.path.join(folder, file), value, needed)
        # A look whether processes may be put there at all.
        if made and all(os.access(f"{folder}/cgroup.procs", os.W_OK) for folder in made):
            return made
    except OSError:
        pass
    remove(made)
    return []


def _sweep(parent: str) -> None:
    """Remove the empty groups of launchers that were killed."""
    for name in os.listdir(parent):
        pid = name.removeprefix(_PREFIX).partition("-")[0]
        if name.startswith(_PREFIX) and not os.path.exists(f"/proc/{pid}"):
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(parent, name))


_Bounds = list[tuple[str, int, bool]]


def _parents(memory: int, tasks: int) -> list[tuple[str, _Bounds]]:
    """Where a group can be made, and what to write into it."""
    mounts = _mounts()
    own = _own()
    v1: list[tuple[str, _Bounds]] = []
    for controller, bounds in (
        (
            "memory",
            [
                ("memory.limit_in_bytes", memory, True),
                ("memory.memsw.limit_in_bytes", memory, False),
            ],
        ),
        ("pids", [("pids.max", tasks, True)]),
    ):
        if controller in mounts and controller in own:
            v1.append((_below(mounts[controller], own[controller]), bounds))
    if len(v1) == 2:
        return v1
    if "" not in mounts or "" not in own:
        raise OSError("no control groups")
    place = _below(mounts[""], own[""])
    top = mounts[""][1]
    # A group with processes of its own hands no controllers down: look further up.
    while not {"memory", "pids"} <= set(_text(f"{place}/cgroup.subtree_control").split()):
        if place == top:
            raise OSError("no controllers are handed down")
        place = os.path.dirname(place)
    bounds = [
        ("memory.max", memory, True),
        ("memory.swap.max", 0, False),
        ("memory.oom.group", 0, False),
        ("pids.max", tasks, True),
    ]
    return [(place, bounds)]


def _mounts() -> dict[str, tuple[str, str]]:
    """Controller (empty for version 2) → (root of the mount within the hierarchy, where it is)."""
    found = {}
    for line in _text(MOUNTS).splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        root, place = fields.split()[3:5]
        if kind == "cgroup2":
            found[""] = (root, place)
        elif kind == "cgroup":
            for option in options.split()[-1].split(","):
                found[option] = (root, place)
    return found


def _own() -> dict[str, str]:
    found = {}
    for line in _text("/proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            found[name] = path
    return found


def _below(mount: tuple[str, str], path: str) -> str:
    """The folder of group *path*, or the mount's own where that lies outside of it."""
    root, place = mount
    inner = os.path.relpath(path, root)
    folder = place if inner.startswith("..") else os.path.normpath(os.path.join(place, inner))
    return folder if os.path.isdir(folder) else place


def _set(path: str, value: int, needed: bool) -> None:
    try:
        with open(path, "w") as file:
            file.write(str(value))
    except OSError:
        if needed:
            raise


def _text(path: str) -> str:
    with open(path) as file:
        return file.read()


def join(folders: list[str], pid: int) -> None:
    """Put a process, and all it will start, into the group."""
    for folder in folders:
        with open(f"{folder}/cgroup.procs", "w") as file:
            file.write(str(pid))


def remove(folders: list[str]) -> None:
    """Remove the group, whose last processes may still be on their way out."""
    for folder in folders:
        for _ in range(200):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.01)
            else:
                break
        else:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
