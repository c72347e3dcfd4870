"""How a model or run is named: a local folder, ``ns/name``, ``ns/name@revision``, ``hf://…``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from cqd_hub.errors import UserError

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_ID = re.compile(rf"({_NAME}/{_NAME})(?:@([A-Za-z0-9][A-Za-z0-9._/-]*))?")


class Reference(NamedTuple):
    """A repository on the Hub.

    Args:
        repo: ``ns/name``.
        revision: Branch, tag or commit; None is the default branch.
        kind: ``"model"`` or ``"dataset"``.
    """

    repo: str
    revision: str | None = None
    kind: str = "model"

    def __str__(self) -> str:
        prefix = "datasets/" if self.kind == "dataset" else ""
        return f"hf://{prefix}{self.repo}" + (f"@{self.revision}" if self.revision else "")


def is_reference(place: str, folder: Path) -> bool:
    """Whether *place* is on the Hub: ``hf://…``, or ``ns/name`` with no such folder here."""
    if place.startswith("hf://"):
        return True
    path = Path(place).expanduser()
    if path.is_absolute() or place.startswith((".", "~")) or (folder / path).exists():
        return False
    return _ID.fullmatch(place) is not None


def parse(place: str, *, kind: str = "model") -> Reference:
    """Read a Hub reference.

    Args:
        place: ``ns/name[@revision]`` or ``hf://[models/|datasets/]ns/name[@revision]``.
        kind: What a plain ``ns/name`` is.

    Raises:
        UserError: It is none.
    """
    text = place
    if place.startswith("hf://"):
        text = place.removeprefix("hf://").rstrip("/")
        for prefix, named in (("datasets/", "dataset"), ("models/", "model")):
            if text.startswith(prefix) and text.count("/") >= 2:
                text, kind = text.removeprefix(prefix), named
    match = _ID.fullmatch(text)
    if match is None or "--" in match[1] or ".." in text:
        raise UserError(
            "is no repository of the Hub",
            where=place,
            remedy="write ns/name, ns/name@revision, or hf://datasets/ns/name",
        )
    return Reference(match[1], match[2], kind)
