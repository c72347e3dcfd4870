"""Landlock: what an answer may open when there are no namespaces to hide the rest."""

from __future__ import annotations

import ctypes
import os
import stat

from .kernel import syscall

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_EXECUTE, _WRITE, _READ, _LIST, _TRUNCATE, _IOCTL = 1, 2, 4, 8, 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
_MAKE_DEVICE = (1 << 6) | (1 << 11)
READABLE = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/alternatives",
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def version() -> int:
    """The kernel's Landlock ABI, 0 if it has none."""
    try:
        return syscall(_CREATE, None, 0, 1)
    except OSError:
        return 0


def parts(tree: str, hidden: list[str]) -> tuple[list[str], list[str]]:
    """Return (paths that together are *tree* without the *hidden* ones, folders left open).

    A folder that holds something hidden is taken apart; links in it are left out, because a rule
    would be about their target. All paths are real ones.
    """
    whole, opened, queue = [], [], [tree]
    while queue:
        path = queue.pop()
        if path in hidden:
            continue
        if not any(place.startswith(f"{path}/") for place in hidden):
            whole.append(path)
            continue
        opened.append(path)
        with os.scandir(path) as found:
            queue += [entry.path for entry in found if not entry.is_symlink()]
    return whole, opened


def ruleset(readable: list[str], writable: list[str], hidden: list[str]) -> int:
    """Return a descriptor of the rules: devices, *readable* and *writable* trees, nothing else.

    Of the *hidden* paths inside *readable* trees the names can be listed, the contents not read.

    Network, and (from ABI 6) signals and abstract sockets beyond the answer's own processes, are
    refused as well.
    """
    abi = version()
    known = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    words = [known, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0]
    length = 24 if abi >= 6 else 16 if abi >= 4 else 8
    rules = syscall(_CREATE, (ctypes.c_uint64 * 3)(*words), length, 0)
    rights: list[tuple[str, int]] = []
    for tree in sorted({os.path.realpath(path) for path in (*READABLE, *readable)}):
        if os.path.exists(tree):
            whole, opened = parts(tree, hidden)
            rights += [(path, _EXECUTE | _READ | _LIST) for path in whole]
            rights += [(path, _LIST) for path in opened]
    rights += [(path, _READ | _WRITE) for path in DEVICES]
    rights += [(path, known & ~_MAKE_DEVICE) for path in writable]
    for path, allowed in rights:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            allowed &= _FILE_RIGHTS
        rule = ctypes.create_string_buffer(
            (allowed & known).to_bytes(8, "little") + place.to_bytes(4, "little"), 12
        )
        syscall(_ADD, rules, 1, rule, 0)
        os.close(place)
    return rules


def restrict(rules: int) -> None:
    """Bind this process and its descendants to the rules; no_new_privs must be set."""
    syscall(_RESTRICT, rules, 0)
