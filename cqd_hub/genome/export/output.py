"""The folder an export appears in: whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from cqd_hub.errors import RunError, UserError
from cqd_hub.files import new_folder


@contextmanager
def output_folder(path: Path, *, needed: int) -> Iterator[Path]:
    """Yield a temporary folder that becomes *path*.

    Args:
        path: Where the export shall appear; must not exist, or be empty.
        needed: Bytes that will be written.

    Raises:
        UserError: *path* exists or cannot be written.
        RunError: Not enough space, or writing failed; nothing is left behind.
    """
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise UserError(
            f"cannot be written: {existing} is a file",
            where=str(path),
            remedy="choose another folder",
        )
    try:
        free = shutil.disk_usage(existing).free
        if needed > free:
            raise RunError(
                f"needs {_size(needed)}, {_size(free)} are free",
                where=str(path),
                remedy="free some space or choose a folder on another disk",
            )
        with new_folder(path) as folder:
            yield folder
    except FileExistsError:
        raise UserError(
            "already exists", where=str(path), remedy="choose another folder or delete it first"
        ) from None
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


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
