"""The run directory: who may write it, and what its manifest promises."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cqd_hub.errors import RunError, UserError
from cqd_hub.files import write_atomic
from cqd_hub.recipe import Recipe

# What a resumed run may change: its budget and what does not touch a score.
_FREE = {
    "recipe.search.children",
    "recipe.genome.disk",
    "recipe.evaluation.sandbox_workers",
    "recipe.evaluation.weights",
}
# What a run writes before its first child, beside the manifest.
_WRITTEN = ("journal.sqlite*", "log.txt", "genomes", "merges", "seeds", "layout.json", "plan.json")
# Where the order of keys matters: it numbers the archives and the experts.
_ORDERED = {"recipe.skills", "recipe.experts"}
# Differences that are recorded instead of refused.
_RECORDED = ("versions", "created", "sessions", "folder", "sandbox.guarantees", "licence")
# What the Hub says of a model, which its owner may change at any time, or the cache not know; and
# versions and bounds of what environments run in.
_SAID = re.compile(
    r"models\..*\.(licence|licence_name|gated|base_model)|environments\..*\.guarantees"
)


@contextmanager
def open_directory(folder: Path) -> Iterator[None]:
    """Make *folder* and hold it alone while the block runs.

    Raises:
        UserError: It cannot be made or written, holds something else, or another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = [
            path.name
            for path in folder.iterdir()
            if path.name not in ("manifest.json", "lock") and not path.name.startswith(".")
        ]
        if foreign and not (folder / "manifest.json").exists():
            raise UserError(
                f"is no run directory and not empty (it holds {sorted(foreign)[0]})",
                where=str(folder),
                remedy="choose another with --out",
            )
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}", where=str(folder), remedy="choose another --out"
        ) from None
    held = False
    try:
        _take(descriptor, folder)
        held = True
        yield
    finally:
        if held and not (folder / "manifest.json").exists():  # nothing began here
            (folder / "lock").unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its holder may have removed the file between our opening and our locking it.
        mine = os.path.samestat(os.fstat(descriptor), os.stat(folder / "lock"))
    except (BlockingIOError, FileNotFoundError):
        mine = False
    except OSError as error:
        raise UserError(
            f"cannot be locked: {error.strerror}",
            where=str(folder),
            remedy="choose a folder on a local disk with --out",
        ) from None
    if not mine:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        raise UserError(
            f"is in use by process {holder or 'unknown'}",
            where=str(folder),
            remedy="wait for it or stop it; `cqd-hub report` may read meanwhile",
        )
    with suppress(OSError):  # the number is a courtesy: a full disk may refuse it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)


def discard(folder: Path) -> None:
    """Take back what a run wrote that turned out to be a mistake at its first step."""
    for pattern in (*_WRITTEN, "manifest.json"):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, or None where no run has begun.

    Raises:
        RunError: It is damaged or cannot be read.
    """
    path = folder / "manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"cannot be read: {error}", where=str(path)) from None


def read_recipe(folder: Path) -> Recipe:
    """The recipe a run was made with.

    Raises:
        UserError: *folder* is no run directory, or one of a version with other recipes.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(
            "is no run directory", where=str(folder), remedy="name one made by `cqd-hub evolve`"
        )
    try:
        return Recipe.model_validate(manifest["recipe"])
    except (KeyError, ValidationError):
        raise UserError(
            "holds a recipe that this cqd-hub does not know",
            where=str(folder / "manifest.json"),
            remedy="use the version that made it",
        ) from None


def agree(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Write the manifest of a new run, or check it against the run that is there.

    Returns:
        What is recorded as different (library versions, say), one line each.

    Raises:
        UserError: Recipe, models, tasks or evaluation differ from the run's.
    """
    path = folder / "manifest.json"
    manifest = json.loads(_dump(manifest))  # as the file holds it: lists for tuples
    old = read_manifest(folder)
    if old is None:
        write_atomic(path, _dump(manifest | {"sessions": [manifest["versions"]]}))
        return []
    _refuse(folder, old | {"recipe": _filled_in(old["recipe"])}, manifest)
    recorded = [line for key, line in _differences(old["sessions"][-1], manifest["versions"])]
    sessions = old["sessions"] + ([manifest["versions"]] if recorded else [])
    kept = {**manifest, "versions": old["versions"], "created": old["created"]}
    write_atomic(path, _dump({**kept, "sessions": sessions}))
    return recorded


def refuse_other_recipe(folder: Path, recipe: Recipe) -> None:
    """Refuse the directory of another recipe before anything is opened.

    Raises:
        UserError: The run there has another recipe.
    """
    old = read_manifest(folder)
    if old is not None:
        new = json.loads(_dump(recipe.model_dump(mode="json")))
        _refuse(folder, {"recipe": _filled_in(old["recipe"])}, {"recipe": new})


def _filled_in(recipe: Any) -> Any:
    """A recipe of an earlier version with the defaults of the keys that it did not know."""
    try:
        return json.loads(_dump(Recipe.model_validate(recipe).model_dump(mode="json")))
    except ValidationError:
        return recipe


def _refuse(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    recorded = tuple(f"{part}." for part in _RECORDED)
    refused = [
        line
        for key, line in _differences(old, new)
        if key not in _FREE and not f"{key}.".startswith(recorded) and not _SAID.fullmatch(key)
    ]
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise UserError(
            f"holds a run with {refused[0]}{more}",
            where=str(folder),
            remedy="restore what it was made with, or choose another --out",
        )


def _dump(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, 'key: old, now new') of every leaf that differs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if key in _ORDERED and list(old) != list(new) and set(old) == set(new):
            yield key, f"{key} in the order {', '.join(old)}, now {', '.join(new)}"
        for name in [*old, *(name for name in new if name not in old)]:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield key, f"{key} {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 48 else f"{text[:24]}…{text[-12:]}"
