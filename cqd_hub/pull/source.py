"""One repository at one commit: files fetched when asked for, and checked.

Nothing is opened by a name that the repository chose: callers ask for the names they know.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants

from cqd_hub.errors import RunError, UserError
from cqd_hub.files import sha256_of
from cqd_hub.hub.client import Hub
from cqd_hub.hub.reference import Reference

TOTAL = 64 << 30  # bytes that one command takes from one repository
_ROOM = 64 << 20  # bytes left free on the disk


class _Entry(NamedTuple):
    size: int
    sha256: str | None
    oid: str | None  # git's, of what is not stored as a large file


class Source:
    """A repository pinned to a commit.

    Args:
        hub: The connection.
        reference: Which; its revision is resolved once.
        note: Called with a line for what is repaired.

    Attributes:
        sha: The commit.

    Raises:
        UserError: Not there, private, gated, or no such revision.
        HubAway: The Hub does not answer.
    """

    def __init__(
        self, hub: Hub, reference: Reference, *, note: Callable[[str], None] = lambda line: None
    ) -> None:
        self._hub, self._note = hub, note
        self.repo, self.kind = reference.repo, reference.kind
        info = hub.ask(
            str(reference),
            lambda: hub.api.repo_info(
                reference.repo,
                repo_type=reference.kind,
                revision=reference.revision,
                files_metadata=True,
            ),
        )
        self.sha = str(info.sha)
        self._files = {
            file.rfilename: _Entry(
                file.size or 0, file.lfs.sha256 if file.lfs else None, file.blob_id
            )
            for file in getattr(info, "siblings", None) or []
        }
        self._taken = 0
        self._whole: dict[str, Path] = {}

    def __str__(self) -> str:
        return str(Reference(self.repo, self.sha, self.kind))

    def __contains__(self, path: object) -> bool:
        return path in self._files

    @property
    def paths(self) -> list[str]:
        """Every file's name, as the repository has it."""
        return sorted(self._files)

    def size(self, path: str) -> int:
        """Bytes of a file that is there."""
        return self._files[path].size

    def fetch(self, path: str, *, limit: int) -> Path:
        """Download one file into the Hub's cache, unless it is there, and check its hash.

        Args:
            path: Its name in the repository.
            limit: Bytes; a larger file is refused.

        Raises:
            UserError: No such file, or too large.
            RunError: The disk is full, or the content is not what the Hub says, twice.
        """
        where = f"{self}/{path}"
        if path in self._whole:
            return self._whole[path]
        entry = self._files.get(path)
        if entry is None:
            raise UserError(
                f"has no {path}", where=str(self), remedy="is it what `cqd-hub push` made?"
            )
        self._taken += entry.size
        if entry.size > limit or self._taken > TOTAL:
            most = min(limit, TOTAL)
            raise UserError(
                f"has {_size(entry.size)}; of such a file at most {_size(limit)} are read, of a "
                f"repository {_size(TOTAL)}",
                where=where,
                remedy=f"ask its owner to publish it in parts of up to {_size(most)}",
            )
        place = self._download(path, entry, where, again=False)
        if not _intact(place, entry):
            self._note(f"{where} is damaged; downloading it again")
            place = self._download(path, entry, where, again=True)
        if not _intact(place, entry):
            place.resolve().unlink(missing_ok=True)
            place.unlink(missing_ok=True)
            raise RunError(
                "does not come with the content that the Hub names, twice",
                where=where,
                remedy="try again later",
            )
        self._whole[path] = place
        return place

    def _download(self, path: str, entry: _Entry, where: str, *, again: bool) -> Path:
        cache = Path(constants.HF_HUB_CACHE)

        def download() -> str:
            try:
                return self._hub.api.hf_hub_download(
                    self.repo,
                    path,
                    repo_type=self.kind,
                    revision=self.sha,
                    force_download=again,
                )
            except OSError as error:
                if "Consistency check failed" in str(error):  # fewer bytes came than were promised
                    raise ConnectionError(str(error)) from None
                raise

        try:
            cache.mkdir(parents=True, exist_ok=True)
            return Path(self._hub.ask(where, download))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            free = shutil.disk_usage(cache).free if cache.exists() else 0
            raise RunError(
                f"cannot be kept in {cache}: {error.strerror} ({_size(entry.size)} needed, "
                f"{_size(free)} free)",
                where=where,
                remedy="free some space, or set HF_HOME to a folder on another disk",
            ) from None


def check_room(folder: Path, needed: int) -> None:
    """Raise a `RunError` if *needed* bytes would fill the disk of *folder*."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if needed + _ROOM > free:
        raise RunError(
            f"needs {_size(needed)}, {_size(free)} are free",
            where=str(folder),
            remedy="free some space or choose a folder on another disk",
        )


def _intact(place: Path, entry: _Entry) -> bool:
    if place.stat().st_size != entry.size:
        return False
    if entry.sha256 is not None:
        return sha256_of(place) == entry.sha256
    if entry.oid is not None:
        digest = hashlib.sha1(f"blob {entry.size}\0".encode(), usedforsecurity=False)
        digest.update(place.read_bytes())
        return digest.hexdigest() == entry.oid
    return False


def _size(count: int) -> str:
    if count >= 1e8:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"
