"""The server as tests see it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from . import routes
from .admin import Admin
from .faults import Fault, FaultKind, Faults
from .log import Entry, Log
from .messages import Request, Response
from .people import Role, Token
from .site import Settings, Site
from .state import load, save
from .store import Commit, Kind, Repo, Store, is_large
from .wire import Listener, Sent

Content = Path | Mapping[str, bytes | str]

_DROPPED = ("HF_", "HUGGING", "TRANSFORMERS_", "NO_PROXY", "ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY")


class HubServer:
    """A Hub on 127.0.0.1, for as long as the `with` block lasts.

    Repositories are named as in the Hub's addresses: "ns/name" is a model, "datasets/ns/name" a
    data set. `folder` keeps everything in files, from one server to the next. `settings` may be
    changed at any time.
    """

    def __init__(
        self, *, folder: Path | None = None, port: int = 0, settings: Settings | None = None
    ) -> None:
        self.settings = settings or Settings()
        self.site = Site(Store(folder), self.settings)
        self.faults, self.log = Faults(), Log()
        self._folder, self._closing = folder, threading.Event()
        self._dead = False
        if folder:
            load(self.site, folder)
        self._listener = Listener(self._serve, port)
        self._admin = Listener(lambda request: _whole(Admin(self).answer(request)))
        self.site.url = self.url
        self.site.storage_url = f"http://localhost:{self._listener.port}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.port}"

    @property
    def admin_url(self) -> str:
        """Where /__admin__/… answers also while the server is dead."""
        return f"http://127.0.0.1:{self._admin.port}"

    def __enter__(self) -> Self:
        self._listener.start()
        self._admin.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._listener.close()
        self._admin.close()

    # What is on the Hub

    def token(
        self,
        user: str,
        *,
        role: Role = "write",
        orgs: Mapping[str, str] | None = None,
        scopes: Mapping[str, str] | None = None,
        value: str | None = None,
    ) -> str:
        """A new token. `orgs` maps organisations to the user's role there ("admin", "write",
        "read"); `scopes` is what a fine-grained token reaches, see `Token`."""
        with self.site.lock:
            self.site.people.orgs.setdefault(user, {}).update(orgs or {})
            issued = self.site.people.issue(Token(user, role, dict(scopes or {})), value)
            self._save()
            return issued

    def put_model(self, repo: str, content: Content, **options: Any) -> str:
        return self.put(repo, content, **options)

    def put_dataset(self, repo: str, content: Content, **options: Any) -> str:
        return self.put(f"datasets/{repo}", content, **options)

    def put(
        self,
        repo: str,
        content: Content,
        *,
        private: bool | None = None,
        gated: str | bool | None = None,
        branch: str = "main",
        title: str = "Add files",
    ) -> str:
        """Commit a folder or files by path, making the repository if needed; the commit's hash."""
        files = content if isinstance(content, Mapping) else _read_folder(content)
        kind, repo_id = _split(repo)
        with self.site.lock:
            found = self.site.store.repos.get(repo)
            if found is None:
                found = self.site.store.create(kind, repo_id, author=repo_id.split("/")[0])
            if private is not None:
                found.private = private
            if gated is not None:
                found.gated = "auto" if gated is True else gated
            found.branches.setdefault(branch, found.branches["main"])
            tree = dict(found.resolve(branch).tree)
            for path, value in files.items():
                data = value.encode() if isinstance(value, str) else value
                large = is_large(path, len(data), self.settings.lfs_over)
                blobs = self.site.store.blobs
                tree[path] = blobs.large(data) if large else blobs.regular(data)
                if large:
                    found.lfs.add(tree[path].sha256)
            made = found.commit(branch, tree, author=found.namespace, title=title)
            self._save()
            return made.oid

    def grant(self, repo: str, user: str) -> None:
        """Let a user through the gate of a repository."""
        with self.site.lock:
            self.repo(repo).granted.append(user)
            self._save()

    def repo(self, repo: str) -> Repo:
        """Raises KeyError where there is none."""
        return self.site.store.repos[repo]

    def repos(self) -> list[str]:
        return sorted(self.site.store.repos)

    def file(self, repo: str, path: str, *, revision: str = "main") -> bytes:
        with self.site.lock:
            found = self.repo(repo)
            file = found.resolve(revision).tree[path]
            return self.site.store.blobs.get(file.sha256)

    def files(self, repo: str, *, revision: str = "main") -> dict[str, str]:
        """The sha256 of every file by its path."""
        with self.site.lock:
            tree = self.repo(repo).resolve(revision).tree
            return {path: tree[path].sha256 for path in sorted(tree)}

    def commits(self, repo: str, *, revision: str = "main") -> list[Commit]:
        """Newest first."""
        with self.site.lock:
            found = self.repo(repo)
            return list(found.history(found.resolve(revision)))

    def collections(self) -> dict[str, list[tuple[str, str | None]]]:
        """By slug: the repositories of each collection with their notes."""
        with self.site.lock:
            return {
                slug: [(item["key"], item["note"]) for item in value["items"]]
                for slug, value in self.site.collections.items()
            }

    # What goes wrong

    def fault(self, kind: FaultKind, path: str = "", **options: Any) -> Fault:
        """Switch a fault on; the options are the fields of `Fault`, which counts its hits."""
        return self.faults.add(Fault(kind, path, **options))

    def die_at(self, number: int, *, after: bool = False) -> None:
        """Die at that request, counted from now: before its work or with its answer lost."""
        self.faults.die_at(number, after=after)

    def die(self) -> None:
        """Refuse all connections until `revive`."""
        with self.site.lock:
            self._dead = True
        self._listener.stop()

    def revive(self) -> None:
        self._dead = False
        self._listener.start()

    @property
    def dead(self) -> bool:
        return self._dead

    # Clients

    def environment(self, *, token: str | None = None, home: Path, **extra: str) -> dict[str, str]:
        """The environment of a child process whose only Hub is this one."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().startswith(_DROPPED)
        }
        return kept | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            **({"HF_TOKEN": token} if token else {}),
            **extra,
        }

    # One request

    def _serve(self, request: Request) -> Sent:
        if request.path.startswith("/__admin__/"):
            return _whole(Admin(self).answer(request))
        death = self.faults.death()
        if death == "before":
            return self._dying(request, "died")
        for fault in self.faults.before(request):
            if fault.kind == "delay":
                self._closing.wait(fault.seconds)
            elif fault.kind == "drop":
                return self._logged(request, Sent(None), "drop")
            else:
                response = fault.response()
                return self._logged(request, Sent(response, response.body), "status")
        with self.site.lock:
            if self._dead:
                return self._logged(request, Sent(None), "dead")
            response = routes.dispatch(self.site, request)
            if request.method not in ("GET", "HEAD"):
                self._save()
        if death == "after":
            return self._dying(request, "died after")
        spoiled = self.faults.after(request, response)
        if spoiled is None:
            return self._logged(request, Sent(response, response.body), None)
        if spoiled.kind == "lose":
            return self._logged(request, Sent(None), "lose")
        return self._logged(request, Sent(response, spoiled.spoil(response.body)), spoiled.kind)

    def _dying(self, request: Request, how: str) -> Sent:
        sent = self._logged(request, Sent(None), how)
        self.die()
        return sent

    def _logged(self, request: Request, sent: Sent, fault: str | None) -> Sent:
        entry = Entry(
            method=request.method,
            target=request.target,
            status=sent.response.status if sent.response else None,
            received=len(request.body),
            sent=0 if request.method == "HEAD" else len(sent.body),
            agent=request.agent,
            authorized=request.token is not None,
            fault=fault,
        )
        self.log.add(entry)
        return sent

    def _save(self) -> None:
        if self._folder:
            save(self.site, self._folder)


def _whole(response: Response) -> Sent:
    return Sent(response, response.body)


def _split(repo: str) -> tuple[Kind, str]:
    if repo.startswith("datasets/"):
        return "dataset", repo.removeprefix("datasets/")
    if repo.startswith("spaces/"):
        return "space", repo.removeprefix("spaces/")
    return "model", repo


def _read_folder(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
