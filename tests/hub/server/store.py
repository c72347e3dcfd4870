"""Repositories: commits over trees of files, branches and tags; contents by hash."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from .messages import HubError, entry_not_found, revision_not_found

Kind = Literal["model", "dataset", "space"]

_LFS_SUFFIXES = """
.7z .arrow .bin .bz2 .ckpt .ftz .gguf .gif .gz .h5 .jpeg .jpg .mlmodel .model .msgpack .npy .npz
.onnx .ot .parquet .pb .pdf .pickle .pkl .png .pt .pth .rar .safetensors .sqlite .tar .tflite .tgz
.wasm .webp .xz .zip .zst
"""
LFS_SUFFIXES = tuple(_LFS_SUFFIXES.split())

_NAME = re.compile(r"(?!.*(\.\.|--))[A-Za-z0-9_]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")


def now() -> str:
    """This moment in the one form of date that the client parses."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


@dataclass(frozen=True)
class File:
    """A file of a tree: `oid` is git's id of the content or, with `lfs`, of the pointer."""

    oid: str
    size: int
    sha256: str
    lfs: bool = False

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    author: str
    date: str
    title: str
    message: str
    tree: Mapping[str, File]


@dataclass
class Repo:
    """A repository. `lfs` holds the hashes of all large files ever sent to it."""

    kind: Kind
    id: str
    private: bool = False
    gated: str | bool = False
    granted: list[str] = field(default_factory=list)
    created: str = field(default_factory=now)
    modified: str = field(default_factory=now)
    sdk: str | None = None
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0] if "/" in self.id else ""

    @property
    def prefix(self) -> str:
        return "" if self.kind == "model" else f"{self.kind}s/"

    @property
    def key(self) -> str:
        """The name by which a whole Hub knows it: its id, of a dataset with "datasets/" before."""
        return self.prefix + self.id

    def resolve(self, revision: str) -> Commit:
        """The commit of a branch, tag, "refs/heads/…", hash, or start (7 or more) of a hash."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        oid = self.branches.get(name) or self.tags.get(name) or revision
        if oid in self.commits:
            return self.commits[oid]
        if re.fullmatch(r"[0-9a-f]{7,39}", revision):
            found = [oid for oid in self.commits if oid.startswith(revision)]
            if len(found) == 1:
                return self.commits[found[0]]
        raise revision_not_found(revision)

    def history(self, start: Commit) -> Iterator[Commit]:
        """From a commit back to the first."""
        here: Commit | None = start
        while here is not None:
            yield here
            here = self.commits[here.parent] if here.parent else None

    def file(self, commit: Commit, path: str) -> File:
        if path not in commit.tree:
            error = entry_not_found()
            error.headers["X-Repo-Commit"] = commit.oid
            raise error
        return commit.tree[path]

    def commit(
        self, branch: str, tree: Mapping[str, File], *, author: str, title: str, message: str = ""
    ) -> Commit:
        """Put a commit of this tree on the branch."""
        parent = self.branches.get(branch)
        made = make_commit(parent, tree, author=author, title=title, message=message)
        self.commits[made.oid] = made
        self.branches[branch] = made.oid
        self.modified = made.date
        return made


_numbers = itertools.count()


def make_commit(
    parent: str | None, tree: Mapping[str, File], *, author: str, title: str, message: str
) -> Commit:
    date = now()
    content = repr((parent, sorted(tree.items()), author, date, title, message, next(_numbers)))
    oid = hashlib.sha1(content.encode()).hexdigest()
    return Commit(oid, parent, author, date, title, message, dict(tree))


class Blobs:
    """Contents by their sha256, in memory or, with a folder, in files."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder, self._memory = folder, dict[str, bytes]()
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def put(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        if self._folder is None:
            self._memory[sha256] = content
        elif not (path := self._folder / sha256).exists():
            part = path.with_suffix(".part")
            part.write_bytes(content)
            part.replace(path)
        return sha256

    def get(self, sha256: str) -> bytes:
        if self._folder is None:
            return self._memory[sha256]
        return (self._folder / sha256).read_bytes()

    def regular(self, content: bytes) -> File:
        return File(git_oid(content), len(content), self.put(content))

    def large(self, content: bytes) -> File:
        return pointed(self.put(content), len(content))


def pointed(sha256: str, size: int) -> File:
    """The file of a large content that is known by its hash."""
    return File(git_oid(lfs_pointer(sha256, size)), size, sha256, lfs=True)


class Store:
    """All repositories, by `Repo.key`."""

    def __init__(self, folder: Path | None = None) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs = Blobs(folder / "blobs" if folder else None)

    def create(
        self,
        kind: Kind,
        repo_id: str,
        *,
        author: str,
        private: bool = False,
        sdk: str | None = None,
    ) -> Repo:
        """A new repository with its first commit. Raises HubError 400 for a bad name, 409 for one
        that exists."""
        for part in repo_id.split("/"):
            if not _NAME.fullmatch(part):
                raise HubError(400, f"Invalid repository name: {part[:100]!r}")
        repo = Repo(kind, repo_id, private=private, sdk=sdk)
        if repo.key in self.repos:
            raise HubError(409, f"You already created this {kind} repo: {repo_id}")
        lines = (f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        attributes = self.blobs.regular("".join(lines).encode())
        repo.commit("main", {".gitattributes": attributes}, author=author, title="initial commit")
        self.repos[repo.key] = repo
        return repo


def is_large(path: str, size: int, over: int) -> bool:
    """Whether a file goes to large file storage: by its suffix or its size."""
    return size > 0 and (path.lower().endswith(LFS_SUFFIXES) or size > over)
