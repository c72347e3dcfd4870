"""Start a machine: own users, own writable layer over the image, then bubblewrap.

    launcher (outside, waits) ──fork──> bubblewrap ──> `machine`, first process inside

Runs outside, sent as text like what runs inside; of the host it reads nothing but its plan. The
launcher stays to write the maps of user ids, to bury bubblewrap, and to remove the control group.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

from . import groups, kernel, layers

# Of what Docker gives, all but raw sockets, device nodes and chroot.
CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_SETFCAP", "CAP_NET_BIND_SERVICE", "CAP_AUDIT_WRITE",
)  # fmt: skip
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PRIVATE = "/tmp"  # where the private file system lies while the machine is put together


def main(plan: Mapping[str, Any]) -> None:
    """Start what *plan* says and wait for its end.

    Args:
        plan: `root` (the image's folder), `ids` (`uid`, `gid`, `count`: what 0… is outside),
            `helpers` (newuidmap and newgidmap, for an ordinary user), `spare` (the user that root
            becomes), `limits`, `tasks` (RLIMIT_NPROC), `group` (try for a control group), and
            either `bwrap` and `command` (the machine) or `action` (a script for sh, as the root
            that owns the image).
    """
    os.chdir(plan["root"])
    group = groups.make(plan["limits"]) if plan.get("group") else []
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(ready[0])
            os.close(go[1])
            _child(plan, ready[1], go[0])
            code = 0
        except OSError as error:
            os.write(2, f"the machine cannot be put together: {error}\n".encode())
        finally:
            os._exit(code)
    os.close(ready[1])
    os.close(go[0])
    os.close(0)
    os.dup2(2, 1)  # its end must show at the other end
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    try:
        if os.read(ready[0], 1):
            _map(plan, child)
            groups.join(group, child)
            os.write(go[1], b"g")
    except OSError as error:
        os.write(2, f"the machine cannot be put together: {error}\n".encode())
        os.kill(child, signal.SIGKILL)
    code = 1
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.wait()
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                # Ended early, bubblewrap leaves a process that waits for it for ever.
                _end_children()
    groups.remove(group)
    os._exit(0 if code == 0 else 1)


def _end_children() -> None:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        for pid in file.read().split():
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)


def _map(plan: Mapping[str, Any], child: int) -> None:
    """Write the maps of user ids, in a process of its own.

    That takes the owner of the namespace, and where it maps others' ids, root's rights over them.
    """
    writer = os.fork()
    if writer == 0:
        try:
            if plan["spare"] is not None:
                kernel.become_keeping_capabilities(plan["spare"])
            _write_maps(plan, child)
            os._exit(0)
        except (OSError, subprocess.CalledProcessError) as error:
            os.write(2, f"user ids cannot be mapped: {error}\n".encode())
        finally:
            os._exit(1)
    if os.waitpid(writer, 0)[1]:
        raise OSError("no user ids")


def _write_maps(plan: Mapping[str, Any], child: int) -> None:
    ids = plan["ids"]
    for kind, helper in zip(("uid", "gid"), plan["helpers"] or (None, None), strict=True):
        words = ["0", str(ids[kind]), str(ids["count"])]
        if helper is not None:
            subprocess.run([helper, str(child), *words], check=True, env={})
            continue
        if ids["count"] == 1 and kind == "gid":
            with open(f"/proc/{child}/setgroups", "w") as file:
                file.write("deny")
        with open(f"/proc/{child}/{kind}_map", "w") as file:
            file.write(" ".join(words))


def _child(plan: Mapping[str, Any], ready: int, go: int) -> None:
    spare = plan["spare"]
    if spare is not None:
        os.setgroups([])
        os.setresgid(spare, spare, spare)
        os.setresuid(spare, spare, spare)
    if plan.get("tasks"):
        # Read when the namespace is made: the bound of all its users together.
        resource.setrlimit(resource.RLIMIT_NPROC, (plan["tasks"], plan["tasks"]))
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # lets the launcher, if of the same user, write maps
    kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
    os.write(ready, b"r")
    if not os.read(go, 1):
        os._exit(1)
    os.close(ready)
    os.close(go)
    if plan["ids"]["count"] > 1:
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if "action" in plan:
        os.execve("/bin/sh", ["sh", "-c", plan["action"]], {"PATH": PATH})
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    # The image is the current folder: relative, because the table of mounts is readable inside.
    layers.lay(".", PRIVATE, plan["limits"], "userxattr")
    os.execve(plan["bwrap"], _arguments(plan), {})


def _arguments(plan: Mapping[str, Any]) -> list[str]:
    return [
        plan["bwrap"],
        *("--bind", f"{PRIVATE}/merged", "/", "--bind", f"{PRIVATE}/run", "/run"),
        "--proc",
        "/proc",
        *(
            w
            for path in layers.CLOSED
            for w in ("--size", "4096", "--tmpfs", path, "--remount-ro", path)
        ),
        *("--dev", "/dev", "--bind", f"{PRIVATE}/shm", "/dev/shm", "--remount-ro", "/dev"),
        *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
        *("--unshare-cgroup-try", "--hostname", "box", "--chdir", "/"),
        *("--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL"),
        *(word for name in CAPABILITIES for word in ("--cap-add", name)),
        *("--", *plan["command"]),
    ]
