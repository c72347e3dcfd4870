"""From what a person typed to a recipe file."""

from __future__ import annotations

import difflib
from pathlib import Path

from cqd_hub import assets
from cqd_hub.errors import UserError


def find_recipe(name: str) -> Path:
    """A path as it is, else the shipped recipe of that name.

    Raises:
        UserError: Neither.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    folder = assets.folder("recipes")
    shipped = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    close = difflib.get_close_matches(name, shipped, n=1)
    raise UserError(
        "no such file, and no shipped recipe of that name",
        where=name,
        remedy=f"did you mean {close[0]!r}?" if close else f"shipped: {', '.join(shipped)}",
    )
