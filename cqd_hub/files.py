"""Small file operations that leave either the old content or the new, never half of it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cqd_hub.errors import RunError


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write *content* (text as UTF-8) to *path* through a synced temporary file beside it.

    Raises:
        RunError: The disk is full or failing; the old content is there.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(
            f"cannot be written: {error.strerror}",
            where=str(path),
            remedy="free some space and run the same command again",
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make a new name in *folder* survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes *path* when the block ends without an error.

    Raises:
        FileExistsError: *path* exists and is not an empty folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def size_text(count: int) -> str:
    """A number of bytes for people: ``0.05 MB``, ``12.50 MB``, ``1.25 GB``."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def cache_folder() -> Path:
    """What can be made again: ``$CQD_HUB_CACHE``, else ``cqd-hub`` in the user's cache folder."""
    if folder := os.environ.get("CQD_HUB_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cqd-hub"


def signature(path: Path) -> list[int]:
    """What changes when somebody writes to a file: size, time of change, and which file it is."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


_HASHED: dict[Path, tuple[list[int], str]] = {}


def trust_sha256(path: Path, sha256: str) -> None:
    """Let `sha256_of` answer for this file, as it is now, what somebody has verified before."""
    _HASHED[path.resolve()] = (signature(path), sha256)


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file's content."""
    if (known := _HASHED.get(path.resolve())) and known[0] == signature(path):
        return known[1]
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
