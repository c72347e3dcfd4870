"""Which files a model holds at one commit, by name, size and hash: asked once, then remembered."""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants

from cqd_hub.errors import RunError, UserError
from cqd_hub.files import cache_folder, sha256_of, signature, trust_sha256, write_atomic
from cqd_hub.hub.client import Hub, HubAway
from cqd_hub.hub.reference import Reference

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class File(NamedTuple):
    """A file on the Hub.

    Args:
        size: Bytes.
        digest: SHA-256 of a large file (64 digits), git's hash of a small one (40 digits); empty
            where only a cache without links knows of it.
    """

    size: int
    digest: str

    def matches(self, path: Path) -> bool:
        """Whether the file at *path* has this content."""
        if path.stat().st_size != self.size:
            return False
        if not self.digest:
            return True
        found = sha256_of(path) if len(self.digest) == 64 else _git_hash(path)
        return found == self.digest


@dataclass
class Listing:
    """A model at one commit, and which of its files are known to be whole in the cache.

    Args:
        repo: ``ns/name``.
        sha: The commit.
        files: By path.
        gated: Whether access must be asked for; None where only the cache was looked at.
        verified: Name → `signature` of the file whose hash was checked.
    """

    repo: str
    sha: str
    files: dict[str, File]
    gated: bool | None = None
    verified: dict[str, list[int]] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """``ns/name@sha``."""
        return f"{self.repo}@{self.sha}"

    @property
    def folder(self) -> Path:
        """Where the client's cache keeps this commit."""
        return cached(self.repo) / "snapshots" / self.sha

    def is_whole(self, name: str) -> bool:
        """Whether a file is in the cache with the right content; it is hashed once."""
        path = self.folder / name
        try:
            now = signature(path)
        except OSError:
            return False
        if self.verified.get(name) != now:
            if not self.files[name].matches(path):
                return False
            self.verified[name] = now
            self._save()
        if len(self.files[name].digest) == 64:
            trust_sha256(path, self.files[name].digest)
        return True

    def _save(self) -> None:
        files = {name: list(file) for name, file in self.files.items()}
        value = {"files": files, "gated": self.gated, "verified": self.verified}
        write_atomic(_record(self.repo, self.sha), json.dumps(value))


def list_files(hub: Hub, reference: Reference) -> Listing:
    """Resolve a revision to a commit and list its files.

    A commit that was listed before takes no request. A branch or tag is always asked for, because
    the client would answer from its cache, silently, while the Hub is away.

    Raises:
        UserError: Missing, private, no such revision; offline and not in the cache.
        HubAway: The Hub does not answer.
    """
    pinned = reference.revision if _COMMIT.fullmatch(reference.revision or "") else None
    if pinned and (known := _remembered(reference.repo, pinned)):
        return known
    if constants.is_offline_mode():
        return _offline(hub, reference)
    try:
        info = hub.ask(
            str(reference),
            lambda: hub.api.model_info(
                reference.repo, revision=reference.revision, files_metadata=True
            ),
        )
    except HubAway:
        if pinned and (found := _from_cache(reference.repo, pinned)):
            hub.note(f"{reference.repo}@{pinned}: the Hub is away; using the cached files")
            return found
        raise
    assert info.sha is not None  # the Hub always names the commit
    files = {
        entry.rfilename: File(entry.size or 0, entry.lfs.sha256 if entry.lfs else entry.blob_id)
        for entry in info.siblings or []
        if entry.blob_id is not None
    }
    listing = Listing(reference.repo, info.sha, files, bool(info.gated))
    if known := _remembered(listing.repo, listing.sha):
        listing.verified = known.verified
    return listing


def cached(repo: str) -> Path:
    """Where the client's cache keeps a model."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def remember_revision(reference: Reference, listing: Listing) -> None:
    """Leave in the client's cache what a branch or tag stood for, as the client does itself."""
    if reference.revision == listing.sha:
        return
    place = cached(listing.repo) / "refs" / (reference.revision or "main")
    with suppress(OSError, UnicodeDecodeError):
        if place.read_text(encoding="ascii") == listing.sha:
            return
    with suppress(RunError):  # a courtesy: the cache may be for reading only
        write_atomic(place, listing.sha)


def _offline(hub: Hub, reference: Reference) -> Listing:
    sha, revision = reference.revision, reference.revision or "main"
    if not _COMMIT.fullmatch(sha or ""):
        try:
            sha = (cached(reference.repo) / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            sha = None
    found = (_remembered(reference.repo, sha) or _from_cache(reference.repo, sha)) if sha else None
    if found is None:
        raise UserError(
            "is not in the cache, and HF_HUB_OFFLINE is set",
            where=str(reference),
            remedy="unset HF_HUB_OFFLINE, once, to download it",
        )
    if sha != reference.revision:
        hub.note(f"{reference}: offline, taken as it is in the cache, at commit {sha}")
    return found


def _from_cache(repo: str, sha: str) -> Listing | None:
    """What lies in the client's cache: its blobs are named by the hashes that they should have."""
    folder = cached(repo) / "snapshots" / sha
    if not folder.is_dir():
        return None
    files = {}
    for path in folder.rglob("*"):
        blob = os.readlink(path).rpartition("/")[2] if path.is_symlink() else ""
        if path.is_file():
            known = blob if _DIGEST.fullmatch(blob) else ""
            files[path.relative_to(folder).as_posix()] = File(path.stat().st_size, known)
    return Listing(repo, sha, files)


def _remembered(repo: str, sha: str) -> Listing | None:
    try:
        value = json.loads(_record(repo, sha).read_text(encoding="utf-8"))
        files = {name: File(*entry) for name, entry in value["files"].items()}
        return Listing(repo, sha, files, value["gated"], value["verified"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _record(repo: str, sha: str) -> Path:
    return cache_folder() / "hub" / repo.replace("/", "--") / f"{sha}.json"


def _git_hash(path: Path) -> str:
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
