"""How this program was called, for commands that a person can copy."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

_NAMES = ("cqd-hub", "hf-cqd")


def command(*arguments: str | os.PathLike[str]) -> str:
    """Return a command line that calls this program again, quoted for a shell.

    The program's name alone where the shell finds the same one by it; else its path, from the
    current folder if it lies below.
    """
    return shlex.join([_program(), *(os.fspath(one) for one in arguments)])


def _program() -> str:
    called = Path(sys.argv[0])
    if called.name not in _NAMES or not called.is_file():
        return _NAMES[0]
    found = shutil.which(called.name)
    if found is not None and os.path.samefile(found, called):
        return called.name
    here, place = Path.cwd(), called.absolute()
    if not place.is_relative_to(here):
        return str(place)
    relative = str(place.relative_to(here))
    return relative if os.sep in relative else os.path.join(".", relative)
