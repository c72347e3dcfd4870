"""Which user ids a machine may have, and which of the host they are."""

from __future__ import annotations

import os
import pwd
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

COUNT = 65536
_FIRST = 100_000  # where distributions start the ranges they grant


@dataclass(frozen=True)
class Ids:
    """Ids 0 to *count* - 1 of a machine are those from *uid* and *gid* on outside."""

    uid: int
    gid: int
    count: int


class Granted(NamedTuple):
    """Ids, and the programs that map them for an ordinary user."""

    ids: Ids
    helpers: tuple[str, str] | None


def ids_here() -> Granted:
    """The best that this user can have: a range of ids, else the one of their own."""
    if os.geteuid() == 0:
        uid, gid = _first_of_root("uid"), _first_of_root("gid")
        if uid and gid:
            return Granted(Ids(*uid[:1], *gid[:1], min(uid[1], gid[1])), None)
    helpers = shutil.which("newuidmap"), shutil.which("newgidmap")
    granted = _granted("/etc/subuid"), _granted("/etc/subgid")
    if helpers[0] and helpers[1] and granted[0] is not None and granted[1] is not None:
        return Granted(Ids(granted[0], granted[1], COUNT), (helpers[0], helpers[1]))
    return Granted(Ids(os.geteuid(), os.getegid(), 1), None)


def single_user(kind: str) -> bool:
    """Whether machines of this kind (auto, bubblewrap, docker) have no user besides root here."""
    return kind != "docker" and ids_here().ids.count == 1


def _first_of_root(kind: str) -> tuple[int, int] | None:
    """First id and length of the range that root takes; never root's own id."""
    for line in Path(f"/proc/self/{kind}_map").read_text().splitlines():
        first, _, length = map(int, line.split())
        if first <= _FIRST and first + length >= _FIRST + COUNT:
            return _FIRST, COUNT
        if first == 0 and length >= COUNT:  # in a container of 65,536 ids
            return 1, COUNT - 1
    return None


def _granted(path: str) -> int | None:
    """The first id of a line ``user:first:count`` that grants this user enough."""
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = ""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        who, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        enough = first.isdigit() and count.isdigit() and int(count) >= COUNT
        if enough and who in (name, str(os.geteuid())):
            return int(first)
    return None
