"""The folder an export appears in: whole or not at all, and resumed after a kill."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from cqd_hub.errors import RunError, UserError
from cqd_hub.files import size_text

_KEY = "export.json"


class _NoRoom(RunError):
    """Not enough space to go on with what was begun."""


@contextmanager
def output_folder(path: Path, *, needed: int, key: Mapping[str, object]) -> Iterator[Path]:
    """Yield the hidden folder ``.NAME.partial`` beside *path*, which becomes *path* at the end.

    A killed or interrupted export leaves it there. The same export (by *key*) finds the finished
    files in it and need not write them again; another one begins with an empty folder. Files must
    get their names only when complete: names that begin with a point are taken for debris.

    Args:
        path: Where the export shall appear; must not exist, or be empty.
        needed: Bytes that will be written in all.
        key: What decides the content of every file: genome, basis, options.

    Raises:
        UserError: *path* exists, cannot be written, or another process exports to it.
        RunError: Not enough space (what a killed export has finished stays), or writing failed:
            nothing is left behind.
    """
    _check_target(path)
    partial = path.absolute().parent / f".{path.absolute().name}.partial"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _locked(partial, path):
            try:
                _prepare(partial, path, needed, dict(key))
                yield partial
                _publish(partial, path)
            except _NoRoom:
                raise
            except Exception:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except PermissionError as error:
        raise UserError(
            f"cannot be written: {error.strerror}",
            where=str(path),
            remedy="choose a folder you may write to",
        ) from None
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"could not be written: {error}", where=str(path), remedy="is the disk full?"
        ) from None


def _check_target(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(
            "already exists", where=str(path), remedy="choose another folder or delete it first"
        )
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise UserError(
            f"cannot be written: {existing} is a file",
            where=str(path),
            remedy="choose another folder",
        )


@contextmanager
def _locked(partial: Path, path: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock ends with the process, however it ends."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another process is exporting there",
                where=str(path),
                remedy="wait for it or choose another folder",
            ) from None
        yield
    finally:
        os.close(descriptor)


def _prepare(partial: Path, path: Path, needed: int, key: Mapping[str, object]) -> None:
    """Keep what the same export has finished, clear away all else, and check the space."""
    if _read_key(partial / _KEY) != key:
        for entry in partial.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for debris in sorted(partial.rglob(".*"), reverse=True):
        shutil.rmtree(debris) if debris.is_dir() else debris.unlink()
    present = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    free = shutil.disk_usage(partial).free
    if needed - present > free:
        error = _NoRoom if present else RunError
        raise error(
            f"needs {size_text(needed - present)}, {size_text(free)} are free",
            where=str(path),
            remedy="free some space or choose a folder on another disk",
        )
    (partial / _KEY).write_text(json.dumps(key), encoding="utf-8")


def _read_key(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _publish(partial: Path, path: Path) -> None:
    (partial / _KEY).unlink()
    try:
        os.replace(partial, path)  # an empty folder in its place is replaced
    except OSError as error:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(
                "appeared while exporting", where=str(path), remedy="choose another folder"
            ) from error
        raise
