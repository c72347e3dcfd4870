"""The answer's private folder: filled before, read back after, emptied."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping


class TooLarge(Exception):
    """More content than the output limit."""


def write_tree(root: str, files: Mapping[str, str]) -> None:
    for path, content in files.items():
        place = os.path.join(root, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "x", encoding="utf-8", newline="") as file:
            file.write(content)


def read_tree(root: str, most: int) -> dict[str, object]:
    """Return {"files": {path: text}, "folders": [path], "links": {path: target}}.

    Nothing is followed or opened but regular files, even those closed to their owner; names and
    contents that are not UTF-8 get replacement characters.

    Raises:
        TooLarge: contents and names exceed *most* bytes.
        OSError, RecursionError: a tree that cannot be walked (too deep).
    """
    files: dict[str, str] = {}
    folders: list[str] = []
    links: dict[str, str] = {}
    left = most

    def walk(folder: int, prefix: str) -> None:
        nonlocal left
        for name in sorted(os.listdir(folder)):
            shown = prefix + os.fsencode(name).decode("utf-8", "replace")
            left -= len(shown.encode())
            kind = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            if not stat.S_ISLNK(kind) and kind & 0o500 != 0o500:
                os.chmod(name, 0o700, dir_fd=folder)
            if stat.S_ISDIR(kind):
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                try:
                    folders.append(shown)
                    walk(inner, shown + "/")
                finally:
                    os.close(inner)
            elif stat.S_ISLNK(kind):
                target = os.fsencode(os.readlink(name, dir_fd=folder)).decode("utf-8", "replace")
                left -= len(target)
                links[shown] = target
            elif stat.S_ISREG(kind):
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                with os.fdopen(os.open(name, flags, dir_fd=folder), "rb") as file:
                    content = file.read(max(left, 0) + 1)
                left -= len(content)
                files[shown] = content.decode("utf-8", "replace")
            if left < 0:
                raise TooLarge

    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        walk(top, "")
    finally:
        os.close(top)
    return {"files": files, "folders": folders, "links": links}


def usage(root: str, most_files: int) -> tuple[int, int]:
    """Return (bytes allocated, entries) below *root*; stops counting beyond *most_files*.

    A path too long for the kernel counts as too many files.
    """
    taken, entries = 0, 0
    queue = [root]
    while queue and entries <= most_files:
        try:
            with os.scandir(queue.pop()) as found:
                for entry in found:
                    entries += 1
                    taken += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        queue.append(entry.path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # what lies below cannot be counted
                return taken, most_files + 1
            # else it changes while we look
    return taken, entries


def empty(root: str) -> None:
    """Remove everything below *root*, whatever its modes and depth; links are not followed."""
    os.chmod(root, 0o700)
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while names := os.listdir(top):
            for name in names:
                _remove(top, name)
    finally:
        os.close(top)


def _remove(top: int, name: str) -> None:
    """Remove *name*; folders in it move up to *top*, so that no depth or path is too long."""
    if not _is_folder(top, name):
        os.unlink(name, dir_fd=top)
        return
    inner = _open_folder(top, name)
    try:
        for entry in os.listdir(inner):
            if _is_folder(inner, entry):
                os.close(_open_folder(inner, entry))  # a closed one cannot move
                os.rename(entry, os.urandom(16).hex(), src_dir_fd=inner, dst_dir_fd=top)
            else:
                os.unlink(entry, dir_fd=inner)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=top)


def _is_folder(within: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=within, follow_symlinks=False).st_mode)


def _open_folder(within: int, name: str) -> int:
    """Open a folder closed to its owner, never through a link put in its place meanwhile."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    place = os.open(name, flags, dir_fd=within)
    try:
        os.chmod(f"/proc/self/fd/{place}", 0o700)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=place)
    finally:
        os.close(place)
