"""Where an environment's data are: a file, a folder or checkout, a data set of the Hub."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from pathlib import Path

from cqd_hub.errors import UserError
from cqd_hub.hub.client import Hub
from cqd_hub.hub.data_set import fetch_data_set
from cqd_hub.hub.reference import is_reference, parse

_FILES = (".json", ".jsonl", ".gz", ".yaml", ".yml")


def is_data_set(data: str, folder: Path) -> bool:
    """Whether what a person wrote is a data set of the Hub: no file's name, nothing in *folder*."""
    return is_reference(data, folder) and (data.startswith("hf://") or not is_file_name(data))


def is_file_name(data: str) -> bool:
    """Whether it ends like a data file."""
    return data.endswith(_FILES)


def find_data(
    data: str,
    folder: Path,
    *,
    names: Sequence[str],
    where: str,
    note: Callable[[str], None] = lambda line: None,
) -> Path:
    """Find an environment's data file or folder.

    Args:
        data: What a person wrote: a file, which is taken as it is; a folder or checkout, searched
            for *names*; or ``ns/name[@revision]``, a data set of the Hub, of which only what
            *names* match is downloaded.
        folder: What a relative path starts from.
        names: Patterns relative to the folder (``data/*/dev.json``, ``**/dev.jsonl``), the best
            first; what the first that matches anything matches is taken. A pattern may match a
            folder.
        where: The option, named in errors.
        note: Called with a line that tells at which commit a data set was taken.

    Raises:
        UserError: Nothing there, or several files that could be meant.
        HubAway: The Hub does not answer.
    """
    if is_data_set(data, folder):
        reference = parse(data, kind="dataset")
        place = fetch_data_set(Hub(note=note), reference, lambda path: _wanted(path, names))
    else:
        place = folder / Path(data).expanduser()
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(
            f"no such file or folder: {place}",
            where=where,
            remedy="name a file, a folder, or ns/name of a data set on the Hub",
        )
    for name in names:
        found = sorted(place.glob(name))
        if len(found) > 1:
            listed = ", ".join(str(path.relative_to(place)) for path in found[:3])
            raise UserError(
                f"{data} holds {len(found)} that could be meant: {listed}",
                where=where,
                remedy=f"name one of them: {found[0]}",
            )
        if found:
            return found[0]
    raise UserError(
        f"{data} holds no {names[0]}" + (f" nor {', '.join(names[1:4])}" if names[1:] else ""),
        where=where,
        remedy="name the file itself, or the folder that holds it",
    )


def _wanted(path: str, names: Sequence[str]) -> bool:
    """Whether a pattern matches a path, or a folder that it is in."""
    places = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    for name in names:
        patterns = [name, name.replace("**/", "")]  # ** may stand for no folder at all
        if any(fnmatch.fnmatchcase(place, pattern) for place in places for pattern in patterns):
            return True
    return False
