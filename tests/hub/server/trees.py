"""Listing files and history."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from .info import lfs_value, safetensors_header
from .messages import HubError, Request, Response, answer, entry_not_found
from .routing import paged, route
from .site import Site
from .store import Commit, Kind, Repo


@route("GET", "/api/{kind}s/{repo}/tree/{revision}/{path}")
def tree_of(
    site: Site, request: Request, kind: Kind, repo: str, revision: str, path: str
) -> Response:
    return _tree(site, request, kind, repo, revision, path.strip("/"))


@route("GET", "/api/{kind}s/{repo}/tree/{revision}")
def tree(site: Site, request: Request, kind: Kind, repo: str, revision: str) -> Response:
    return _tree(site, request, kind, repo, revision, "")


def _tree(
    site: Site, request: Request, kind: Kind, repo_id: str, revision: str, under: str
) -> Response:
    repo = site.repo(request, kind, repo_id)
    commit = repo.resolve(revision)
    prefix = f"{under}/" if under else ""
    if under and not any(path.startswith(prefix) for path in commit.tree):
        raise entry_not_found(f"{under} does not exist on {revision!r}")
    inside = [path for path in _entries(commit) if path.startswith(prefix)]
    if not request.flag("recursive"):
        inside = [path for path in inside if "/" not in path.removeprefix(prefix)]
    expand = request.flag("expand")
    size = site.settings.expanded_page if expand else site.settings.page
    return paged(site, request, inside, size, lambda path: _entry(repo, commit, path, expand))


@route("POST", "/api/{kind}s/{repo}/paths-info/{revision}")
def paths_info(site: Site, request: Request, kind: Kind, repo: str, revision: str) -> Response:
    found = site.repo(request, kind, repo)
    commit = found.resolve(revision)
    form = request.form()
    asked = form.get("paths", [])
    if len(asked) > 1000:
        raise HubError(413, "too many parameters")
    entries = set(_entries(commit))
    expand = form.get("expand", [""])[0].lower() == "true"
    paths = [path.strip("/") for path in asked]
    return answer([_entry(found, commit, path, expand) for path in paths if path in entries])


@route("GET", "/api/{kind}s/{repo}/commits/{revision}")
def history(site: Site, request: Request, kind: Kind, repo: str, revision: str) -> Response:
    found = site.repo(request, kind, repo)
    commits = list(found.history(found.resolve(revision)))
    formatted = "formatted" in request.query.get("expand[]", [])
    size = site.settings.commits_page
    return paged(site, request, commits, size, lambda commit: _commit(commit, formatted))


@route("GET", "/api/models/{repo}/safetensors-metadata/{path}")
def safetensors(site: Site, request: Request, repo: str, path: str) -> Response:
    """Headers of all shards that an index names."""
    found = site.opened(request, "model", repo)
    commit = found.resolve("main")
    index = json.loads(site.store.blobs.get(found.file(commit, path).sha256))
    shards = sorted(set(index.pop("weight_map", {}).values()))
    headers = {
        shard: safetensors_header(site.store.blobs.get(found.file(commit, shard).sha256))
        for shard in shards
    }
    return answer({"index": index, "headers": headers})


def _entries(commit: Commit) -> list[str]:
    """Paths of files and of the folders above them, sorted."""
    paths = set(commit.tree)
    for path in commit.tree:
        parts = path.split("/")
        paths.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    return sorted(paths)


def _entry(repo: Repo, commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    file = commit.tree.get(path)
    value: dict[str, Any]
    if file is None:
        inside = [(name, one) for name, one in commit.tree.items() if name.startswith(f"{path}/")]
        oid = hashlib.sha1(repr(sorted(inside)).encode()).hexdigest()
        value = {"type": "directory", "oid": oid, "size": 0, "path": path}
    else:
        value = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
        if file.lfs:
            value["lfs"] = lfs_value(file, "oid")
    if expand:
        last = _last_change(repo, commit, path)
        value["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
        if file is not None:
            status = {"status": "safe", "avScan": {"virusFound": False}, "pickleImportScan": None}
            value["securityFileStatus"] = status
    return value


def _last_change(repo: Repo, commit: Commit, path: str) -> Commit:
    """The newest commit that gave the path (or something under it) what it now holds."""

    def content(one: Commit) -> list[tuple[str, str]]:
        under = f"{path}/"
        return sorted(
            (name, file.sha256)
            for name, file in one.tree.items()
            if name == path or name.startswith(under)
        )

    here = content(commit)
    for one in repo.history(commit):
        if content(one) != here:
            break
        last = one
    return last


def _commit(commit: Commit, formatted: bool) -> dict[str, Any]:
    value: dict[str, Any] = {
        "id": commit.oid,
        "title": commit.title,
        "message": commit.message,
        "authors": [{"user": commit.author, "avatar": ""}],
        "date": commit.date,
    }
    if formatted:
        value["formatted"] = {"title": commit.title, "message": commit.message}
    return value
