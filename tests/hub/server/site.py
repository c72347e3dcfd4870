"""All that requests act upon: people, repositories, collections, and how the server is set."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from dataclasses import dataclass, field
from typing import Any

from .messages import HubError, Request, repo_not_found
from .people import People, Visitor
from .store import Kind, Repo, Store


@dataclass
class Settings:
    """What a test may set.

    page, expanded_page, commits_page: entries per page of trees, of trees with `expand`, of
        histories and lists.
    lfs_over: bytes above which a file is large whatever its name.
    multipart_over, part_size: bytes above which a large file is sent in parts, bytes per part.
    redirect: large files are served from another origin ("localhost"), as the Hub's are.
    """

    page: int = 1000
    expanded_page: int = 50
    commits_page: int = 50
    lfs_over: int = 10 * 2**20
    multipart_over: int = 5 * 10**9
    part_size: int = 8 * 2**20
    redirect: bool = True


@dataclass
class Site:
    store: Store
    settings: Settings
    people: People = field(default_factory=People)
    collections: dict[str, dict[str, Any]] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    url: str = ""
    storage_url: str = ""
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def visitor(self, request: Request) -> Visitor:
        return self.people.visitor(request.token)

    def repo(self, request: Request, kind: Kind, repo_id: str) -> Repo:
        """A repository the visitor sees. Raises HubError 401 or 404."""
        visitor = self.visitor(request)
        repo = self.store.repos.get(Repo(kind, repo_id).key)
        if repo is None or not visitor.reads(repo):
            raise repo_not_found(anonymous=visitor.token is None)
        return repo

    def opened(self, request: Request, kind: Kind, repo_id: str) -> Repo:
        """A repository whose files the visitor may have. Raises HubError also for a gate."""
        repo = self.repo(request, kind, repo_id)
        visitor = self.visitor(request)
        if visitor.opens(repo):
            return repo
        if visitor.token is None:
            message = f"Access to {kind} {repo.id} is restricted. Please log in."
            raise HubError(401, message, "GatedRepo")
        message = (
            f"Access to {kind} {repo.id} is restricted and you are not in the authorized list. "
            f"Visit {self.url}/{repo.key} to ask for access."
        )
        raise HubError(403, message, "GatedRepo")

    def writable(self, request: Request, kind: Kind, repo_id: str) -> Repo:
        """A repository the visitor may change. Raises HubError 401, 403 or 404."""
        repo = self.repo(request, kind, repo_id)
        visitor = self.visitor(request)
        if visitor.token is None:
            raise HubError(401, "Invalid username or password.")
        if not visitor.writes(repo):
            raise HubError(403, f"You don't have the rights to write to {kind} {repo.id}")
        return repo

    def sees_collection(self, request: Request, collection: dict[str, Any]) -> bool:
        # As a repository of the same owner and visibility would be seen.
        stand_in = Repo("model", f"{collection['namespace']}/-", private=collection["private"])
        return self.visitor(request).reads(stand_in)

    def visible_collection(self, request: Request, slug: str) -> dict[str, Any]:
        """Raises HubError 404."""
        collection = self.collections.get(slug)
        if collection is None or not self.sees_collection(request, collection):
            raise HubError(404, "Collection not found")
        return collection

    def sign(self, path: str) -> str:
        """The path with a signature, for addresses that are used without a token."""
        return f"{path}?signature={self._signature(path)}"

    def check_signature(self, request: Request) -> None:
        given = request.query.get("signature", [""])[0]
        if not hmac.compare_digest(given, self._signature(request.path)):
            raise HubError(403, "The signature of this address does not match")

    def _signature(self, path: str) -> str:
        return hmac.new(self._secret, path.encode(), hashlib.sha256).hexdigest()[:32]
