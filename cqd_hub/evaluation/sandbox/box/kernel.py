"""Linux calls that the standard library lacks: clone, mount, capabilities, prctl.

Inside a box only. Every function raises OSError when the kernel refuses.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from collections.abc import Iterable

ARM = platform.machine() == "aarch64"
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID = (
    0x00020000,
    0x08000000,
    0x10000000,
    0x20000000,
)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    8192,
    16384,
    1 << 18,
)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS = 1, 4, 8
PR_CAPBSET_DROP, PR_SET_SECCOMP = 24, 22
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47

CAP_SYS_CHROOT, CAP_SYS_ADMIN = 18, 21

_libc = ctypes.CDLL(None, use_errno=True)
# The same library with the interpreter's lock held: a child must be born holding it.
_libc_locked = ctypes.PyDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def syscall(number: int, *arguments: int | ctypes.Array | ctypes.Structure | None) -> int:
    """Call the kernel with integers, buffers or None (a null pointer)."""
    words: list = [ctypes.c_long(number)]
    for argument in arguments:
        if argument is None:
            words.append(ctypes.c_void_p(0))
        elif isinstance(argument, int):
            words.append(ctypes.c_long(argument))
        else:
            words.append(ctypes.byref(argument))
    _libc.syscall.restype = ctypes.c_long
    return _check(_libc.syscall(*words))


def prctl(option: int, *arguments: int) -> int:
    padded = [*arguments, *[0] * (4 - len(arguments))]
    return _check(_libc.prctl(ctypes.c_int(option), *(ctypes.c_ulong(word) for word in padded)))


def fork_into(namespaces: int) -> int:
    """Fork with the child born into new *namespaces* (CLONE_NEW* flags); return as os.fork does.

    glibc does not learn the child's thread id this way, so the child must stay single-threaded
    and hand work over to its own os.fork() children.
    """
    api = ctypes.pythonapi
    flags = ctypes.c_ulong(namespaces | signal.SIGCHLD)
    nothing = ctypes.c_ulong(0)
    number = ctypes.c_long(220 if ARM else 56)
    _libc_locked.syscall.restype = ctypes.c_long
    api.PyOS_BeforeFork()
    pid = _libc_locked.syscall(number, flags, nothing, nothing, nothing, nothing)
    if pid == 0:
        api.PyOS_AfterFork_Child()
        return 0
    api.PyOS_AfterFork_Parent()
    return _check(pid)


def mount(
    source: str, target: str, kind: str | None = None, flags: int = 0, options: str = ""
) -> None:
    _check(
        _libc.mount(
            source.encode(),
            os.fsencode(target),
            kind.encode() if kind else None,
            ctypes.c_ulong(flags),
            options.encode() or None,
        )
    )


def unshare(namespaces: int) -> None:
    _check(_libc.unshare(ctypes.c_int(namespaces)))


def drop_capabilities() -> None:
    """Empty every capability set of this process, for good (with no_new_privs)."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # beyond the last one, or already powerless
            break
    prctl(PR_CAP_AMBIENT, 4)  # clear all
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    syscall(91 if ARM else 126, header, (ctypes.c_uint32 * 6)())


_GET, _SET = (90, 91) if ARM else (125, 126)


def _capabilities() -> tuple[ctypes.Array, ctypes.Array]:
    """The header, and effective, permitted, inheritable; then their upper halves."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    found = (ctypes.c_uint32 * 6)()
    syscall(_GET, header, found)
    return header, found


def become_keeping_capabilities(uid: int) -> None:
    """Change the user id, and nothing of what this process may do."""
    prctl(PR_SET_KEEPCAPS, 1)
    os.setresuid(uid, uid, uid)
    header, found = _capabilities()
    found[0], found[3] = found[1], found[4]
    syscall(_SET, header, found)


def bound_capabilities(without: Iterable[int]) -> None:
    """Give up some capabilities, and bound all programs started here by those that are left."""
    header, found = _capabilities()
    left = (found[1] | found[4] << 32) & ~sum(1 << capability for capability in without)
    for capability in range(64):
        if not left >> capability & 1:
            try:
                prctl(PR_CAPBSET_DROP, capability)
            except OSError:  # beyond the last one
                break
    prctl(PR_CAP_AMBIENT, 4)  # clear all: root needs none
    for half in range(2):
        for offset in range(3):
            found[3 * half + offset] &= left >> 32 * half & 0xFFFFFFFF
    syscall(_SET, header, found)
