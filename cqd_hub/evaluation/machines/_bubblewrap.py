"""Machines in bubblewrap: the image under a private, bounded layer in memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cqd_hub.evaluation.sandbox._start import FLAGS, first_frame, interpreter, spare_uid
from cqd_hub.evaluation.sandbox._worker import start_process
from cqd_hub.evaluation.sandbox.box import groups

from ._agent import AgentMachine, agent_frame, end_process
from ._ids import ids_here
from ._image import Image
from ._interface import MachineLimits
from ._spare import SpareMachines

LAUNCHER = ("kernel", "groups", "layers", "enter")
PYTHON = ["/usr/bin/python3", *FLAGS]


def launch_plan(folder: Path) -> dict[str, Any]:
    """What `box.enter` needs to act on *folder* with the ids of this user."""
    granted = ids_here()
    return {
        "root": str(folder),
        "ids": asdict(granted.ids),
        "helpers": granted.helpers,
        "spare": spare_uid() if os.geteuid() == 0 and granted.ids.count > 1 else None,
        "limits": None,
    }


def launcher() -> list[str]:
    return [interpreter(), "-I", *FLAGS]


def launcher_frame(plan: Mapping[str, Any]) -> bytes:
    return first_frame(dict(plan), LAUNCHER)


class BubblewrapMachines(SpareMachines):
    """Started by `box.enter`; see there and `docs/sandbox.md`."""

    def __init__(self, image: Image) -> None:
        super().__init__()
        self._image = image
        self.kind = f"bubblewrap-{image.digest}"
        self._grouped = has_groups()
        self.single_user = image.ids.count == 1
        users = "one user id" if self.single_user else f"{image.ids.count} user ids of its own"
        memory = (
            "memory, what is written included, and processes bounded together in a control group"
            if self._grouped
            else "memory bounded per process only, processes together"
        )
        if self.single_user:
            self.missing += (
                "there is one user id, root's: files cannot be given away, no other user can act, "
                "and tasks that need this cannot be played",
            )
        if not self._grouped:
            self.missing += (
                "no control group can be made here: total memory is not bounded, only that of each "
                "process",
            )
        self.guarantees = (
            f"bubblewrap: {users}; own user, pid, mount, ipc, uts, cgroup and network namespaces; "
            "root inside with part of Docker's capabilities, filtered system calls, no nested "
            "namespaces; own loopback only; no host files; written bytes and files bounded; "
            f"{memory}; CPU time per process, output and time bounded; same kernel; {image.made}"
        )

    async def _new(self, limits: MachineLimits) -> AgentMachine:
        plan = launch_plan(self._image.root)
        plan |= {
            "limits": asdict(limits),
            "bwrap": shutil.which("bwrap"),
            "command": PYTHON,
            "group": self._grouped,
            "tasks": tasks(limits),
        }
        memory = None if self._grouped else limits.memory_mb << 20
        process = await start_process(launcher(), {})

        async def end() -> None:
            await end_process(process, 10)

        machine = AgentMachine(process, limits, end)
        assert process.stdin is not None
        process.stdin.write(launcher_frame(plan))
        process.stdin.write(agent_frame(asdict(limits), memory=memory, container=False))
        return machine


def tasks(limits: MachineLimits) -> int:
    """RLIMIT_NPROC of the machine as a whole: it counts all of the launching user's."""
    own = groups.AGENT_TASKS + limits.processes
    if os.geteuid() == 0:
        return own
    return own + _tasks_of_user() + 64


def _tasks_of_user() -> int:
    me, count = os.getuid(), 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == me:
                    count += os.stat(f"/proc/{entry.name}/task").st_nlink - 2
            except OSError:
                continue
    return count


def has_groups() -> bool:
    """Whether a control group can be made here."""
    made = groups.make(asdict(MachineLimits()))
    groups.remove(made)
    return bool(made)
