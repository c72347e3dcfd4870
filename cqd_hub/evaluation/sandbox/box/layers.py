"""A machine's root: the image below, a private and bounded layer in memory above."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from . import kernel

# Closed to a machine's root, so that looking through all files would end in an error; the latter is
# the agent.
CLOSED = ("/proc/tty/driver", "/proc/1")

HOSTS = "127.0.0.1 localhost box\n::1 localhost\n"
# What moving in takes. Given up afterwards, which also closes the way back out.
RIGHTS = {"SYS_ADMIN": kernel.CAP_SYS_ADMIN, "SYS_CHROOT": kernel.CAP_SYS_CHROOT}


def lay(lower: str, place: str, limits: Mapping[str, Any], *options: str) -> str:
    """Mount a file system on *place* and, in it, the layers; return the path of the new root.

    Beside the new root are `shm` and `run`, within the same bound.
    """
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    size = f"size={limits['disk_mb']}m,nr_inodes={limits['files'] + 8},mode=755"
    kernel.mount("machine", place, "tmpfs", flags, size)
    for name in ("upper", "work", "merged", "shm", "run"):
        os.mkdir(f"{place}/{name}", 0o755)
    os.chmod(f"{place}/shm", 0o1777)
    layers = [f"lowerdir={lower}", f"upperdir={place}/upper", f"workdir={place}/work", *options]
    kernel.mount("machine", f"{place}/merged", "overlay", flags, ",".join(layers))
    return f"{place}/merged"


def move_in(limits: Mapping[str, Any]) -> None:
    """Make such layers over a container's root its root; see `RIGHTS`."""
    place = "/mnt"
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    root = lay("/", place, limits)
    for name in ("proc", "dev"):
        kernel.mount(f"/{name}", f"{root}/{name}", None, kernel.MS_BIND | kernel.MS_REC)
    read_only = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID
    kernel.mount("none", f"{root}/dev", None, read_only)
    kernel.mount(f"{place}/shm", f"{root}/dev/shm", None, kernel.MS_BIND)
    kernel.mount(f"{place}/run", f"{root}/run", None, kernel.MS_BIND)
    os.chdir(root)
    kernel.mount(".", "/", None, kernel.MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    for name, text in (("hostname", "box\n"), ("hosts", HOSTS)):  # the engine empties them
        with open(f"/etc/{name}", "w") as file:
            file.write(text)
    for path in CLOSED:
        flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("closed", path, "tmpfs", flags, "size=4k,nr_inodes=2,mode=755")
