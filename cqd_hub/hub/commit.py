"""One commit, exactly once: compare and swap, whatever becomes of the answer.

The Hub's only compare-and-swap is ``parent_commit``, and its client repeats no commit. So: read the
head, build the files *from that head*, commit with that head as parent and a mark in the
description. After any failure the mark is looked for in the history first.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.hf_api import RepoFile

from cqd_hub.errors import UserError
from cqd_hub.files import sha256_of
from cqd_hub.hub.client import Hub

Kind = Literal["model", "dataset"]
Content = bytes | Path
_BLOCK = 1 << 20


class Remote(NamedTuple):
    """A file on the Hub.

    Args:
        size: In bytes.
        sha256: Of a large file; None of a small one.
        oid: Its git object name, of a small one.
    """

    size: int
    sha256: str | None
    oid: str


@dataclass(frozen=True)
class Head:
    """A repository at one commit.

    Args:
        sha: The commit.
        files: Path → what lies there.
    """

    hub: Hub
    repo: str
    kind: Kind
    sha: str
    files: Mapping[str, Remote]

    def read(self, path: str) -> bytes | None:
        """A file's content, checked against its object name; None where there is none.

        Raises:
            ConnectionError: It arrived damaged.
        """
        if path not in self.files:
            return None
        with tempfile.TemporaryDirectory() as folder:
            data = Path(
                self.hub.api.hf_hub_download(
                    self.repo, path, repo_type=self.kind, revision=self.sha, cache_dir=folder
                )
            ).read_bytes()
        if not same(data, self.files[path]):
            raise ConnectionError(f"{path} arrived damaged")
        return data


class Change(NamedTuple):
    """What a commit shall do.

    Args:
        title: Its first line.
        files: Path → new content, or None to delete it. What is there already is left out.
    """

    title: str
    files: Mapping[str, Content | None]


class Committed(NamedTuple):
    """What became of a commit.

    Args:
        sha: The head that holds everything.
        made: Whether a commit was needed.
        files: How many files it changed.
        bytes: Their size.
    """

    sha: str
    made: bool
    files: int
    bytes: int


Builder = Callable[[Head], Change | None]


def read_head(hub: Hub, repo: str, kind: Kind) -> Head:
    """A repository as it is now. Not repeated by itself: call it through `Hub.ask`."""
    sha = hub.api.repo_info(repo, repo_type=kind).sha
    assert sha is not None
    tree = hub.api.list_repo_tree(repo, repo_type=kind, revision=sha, recursive=True)
    files = {
        entry.path: Remote(entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
        for entry in tree
        if isinstance(entry, RepoFile)
    }
    return Head(hub, repo, kind, sha, files)


def commit(hub: Hub, repo: str, kind: Kind, build: Builder, *, mark: str) -> Committed:
    """Commit what *build* makes of the head; at most one commit comes of it.

    Args:
        build: Called with the head, again for every new one; None for nothing to do.
        mark: Who commits; the mark in the description is this and a hash of the content.

    Raises:
        UserError: No right to write, or the Hub rejects the content.
        HubAway: Busy or away for longer than the patience. The commit may have happened: the same
            call finds out.
    """
    tried: list[tuple[str, str, Committed]] = []  # parent, mark, what it would be

    def attempt() -> Committed:
        head = read_head(hub, repo, kind)
        for parent, line, outcome in tried:
            if head.sha != parent and (sha := _marked(hub, repo, kind, parent, line)):
                return outcome._replace(sha=sha)
        change = build(head)
        files = {} if change is None else _changed(change.files, head)
        if change is None or not files:
            return Committed(head.sha, False, 0, 0)
        line = f"{mark} {_digest(files)}"
        contents = [content for content in files.values() if content is not None]
        outcome = Committed("", True, len(files), sum(map(size_of, contents)))
        tried.append((head.sha, line, outcome))
        try:
            made = hub.api.create_commit(
                repo,
                [_operation(path, content) for path, content in files.items()],
                commit_message=change.title,
                commit_description=line,
                repo_type=kind,
                parent_commit=head.sha,
            )
        except RuntimeError as error:
            # The client's word for a failed upload; or one of its threads has closed the
            # connection that others were using.
            closed = (RuntimeError, AttributeError)
            if isinstance(cause := error.__cause__, Exception) and type(cause) not in closed:
                raise cause from None
            raise ConnectionError(str(cause or error)) from None
        except json.JSONDecodeError:
            raise ConnectionError("an answer that cannot be read") from None
        except ValueError as error:
            if "Invalid metadata in README.md" not in str(error):
                raise
            said = " ".join(str(error).partition("\n")[2].split())
            raise UserError(f"the Hub rejects the card: {said[:300]}", where=repo) from None
        return outcome._replace(sha=made.oid)

    return hub.ask(repo, attempt)


def same(content: Content, remote: Remote) -> bool:
    """Whether a local content is what the Hub has."""
    if size_of(content) != remote.size:
        return False
    if remote.sha256 is not None:
        return sha256(content) == remote.sha256
    return git_oid(content) == remote.oid


def size_of(content: Content) -> int:
    """In bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def sha256(content: Content) -> str:
    """Of a content, hexadecimal."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    stat = content.stat()
    return _sha256_of(content, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256_of(path: Path, size: int, changed: int) -> str:
    """Once per state of the file: it is asked for again after every failure."""
    return sha256_of(path)


def git_oid(content: Content) -> str:
    """The object name that git gives a content."""
    digest = hashlib.sha1(b"blob %d\0" % size_of(content), usedforsecurity=False)
    if isinstance(content, bytes):
        digest.update(content)
        return digest.hexdigest()
    with content.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _changed(files: Mapping[str, Content | None], head: Head) -> dict[str, Content | None]:
    def differs(path: str, content: Content | None) -> bool:
        there = head.files.get(path)
        if content is None or there is None:
            return (content is None) != (there is None)
        return not same(content, there)

    return {path: content for path, content in sorted(files.items()) if differs(path, content)}


def _digest(files: Mapping[str, Content | None]) -> str:
    digest = hashlib.sha256()
    for path, content in files.items():
        digest.update(f"{path} {sha256(content) if content is not None else '-'}\n".encode())
    return digest.hexdigest()[:32]


def _operation(path: str, content: Content | None) -> CommitOperationAdd | CommitOperationDelete:
    if content is None:
        return CommitOperationDelete(path)
    return CommitOperationAdd(path, content)


def _marked(hub: Hub, repo: str, kind: Kind, parent: str, line: str) -> str | None:
    """The commit after *parent* that carries a mark."""
    for one in hub.api.list_repo_commits(repo, repo_type=kind):
        if one.commit_id == parent:
            return None
        if line in (one.message or "").splitlines():
            return one.commit_id
    return None
