"""Exec bubblewrap with an empty environment; run as a script: `launch.py JSON`.

An empty environment at exec is the only way to hide the launcher's: --clearenv leaves it readable
in /proc/1/environ. Root first becomes a user that owns nothing, so that what a box can do never
depends on who started it; a Python that this user could not reach is bound where it can.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

PASSWD = "root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000:user:/work:/bin/bash\n"
GROUP = "root:x:0:\nuser:x:1000:\n"
NSSWITCH = "passwd: files\ngroup: files\nhosts: files\n"


def main() -> None:
    plan = json.loads(sys.argv[1])
    arguments = [plan["bwrap"]]
    for path in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            arguments += ["--ro-bind", path, path]
    arguments += ["--ro-bind", "/usr", "/usr"]
    arguments += ["--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for path, text in (
        ("/etc/passwd", PASSWD),
        ("/etc/group", GROUP),
        ("/etc/nsswitch.conf", NSSWITCH),
    ):
        handle = os.memfd_create(path, 0)
        os.write(handle, text.encode())
        os.lseek(handle, 0, os.SEEK_SET)
        arguments += ["--perms", "0444", "--ro-bind-data", str(handle), path]
    prefix = plan["prefix"]
    shelf = prefix
    outside = not f"{prefix}/".startswith("/usr/")
    if plan["uid"] is not None:
        if outside:
            shelf = _reachable(prefix, plan["folder"])
        _become(plan["uid"])
    if outside:
        arguments += ["--ro-bind", shelf, prefix]
    for path in plan["hidden"]:
        arguments += ["--tmpfs", path, "--remount-ro", path]
    arguments += ["--dir", "/work", "--dir", "/tmp", "--dev", "/dev", "--remount-ro", "/dev"]
    arguments += ["--proc", "/proc", "--remount-ro", "/", "--unshare-all", "--unshare-user"]
    arguments += ["--uid", "1000", "--gid", "1000", "--hostname", "box", "--chdir", "/"]
    arguments += ["--die-with-parent", "--new-session"]
    arguments += ["--setenv", "PYTHONHASHSEED", "0", "--", *plan["command"]]
    os.execve(plan["bwrap"], arguments, {})


def _reachable(prefix: str, folder: str) -> str:
    """Bind *prefix* to *folder* in a mount namespace of our own; return *folder*."""
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    check(libc.unshare(0x00020000))
    check(libc.mount(b"none", b"/", None, ctypes.c_ulong(16384 | (1 << 18)), None))
    check(libc.mount(prefix.encode(), folder.encode(), None, ctypes.c_ulong(4096 | 16384), None))
    return folder


def _become(uid: int) -> None:
    os.chdir("/")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


if __name__ == "__main__":
    main()
