"""Preparing and making commits."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from .cards import check_card
from .messages import HubError, Request, Response, answer, entry_not_found, revision_not_found
from .routing import route
from .site import Site
from .store import File, Kind, Repo, is_large, pointed

_STALE = "A commit has happened since. Please refresh and try again."


@route("POST", "/api/{kind}s/{repo}/preupload/{revision}")
def preupload(site: Site, request: Request, kind: Kind, repo: str, revision: str) -> Response:
    """Which files are large, and what lies under their names already."""
    found = site.writable(request, kind, repo)
    tree = found.resolve(revision).tree
    asked = request.json().get("files", [])
    if len(asked) > 256:
        raise HubError(400, "At most 256 files per request")
    files = []
    for entry in asked:
        path, size = entry["path"], int(entry["size"])
        large = is_large(path, size, site.settings.lfs_over)
        value: dict[str, Any] = {
            "path": path,
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
        }
        if path in tree:
            value["oid"] = tree[path].etag
        files.append(value)
    return answer({"files": files, "commitOid": found.resolve(revision).oid})


@route("POST", "/api/{kind}s/{repo}/commit/{branch}")
def commit(site: Site, request: Request, kind: Kind, repo: str, branch: str) -> Response:
    """Apply the operations of an ndjson body as one commit, or none of them.

    A commit that changes nothing is made all the same: avoiding it is left to the client.
    """
    found = site.writable(request, kind, repo)
    if request.flag("create_pr"):
        raise HubError(400, "Pull requests are not served here")
    branch = branch.removeprefix("refs/heads/")
    if branch not in found.branches:
        raise revision_not_found(branch)
    lines = _lines(request.body)
    if not lines or lines[0][0] != "header":
        raise HubError(400, "The first line must be the header")
    header = lines[0][1]
    if not header.get("summary"):
        raise HubError(400, "A commit needs a summary")
    if header.get("parentCommit") not in (None, found.branches[branch]):
        raise HubError(412, _STALE)
    before = found.resolve(branch).tree
    tree = dict(before)
    for key, value in lines[1:]:
        _apply(site, found, tree, key, value)
    _check_paths(tree)
    if tree.get("README.md") != before.get("README.md"):
        _check_readme(site, kind, tree)
    made = found.commit(
        branch,
        tree,
        author=site.visitor(request).name or "",
        title=header["summary"],
        message=header.get("description") or "",
    )
    url = f"{site.url}/{found.key}/commit/{made.oid}"
    return answer({"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})


def _lines(body: bytes) -> list[tuple[str, dict[str, Any]]]:
    try:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        return [(line["key"], dict(line["value"])) for line in lines]
    except (ValueError, KeyError, TypeError):
        raise HubError(400, "The body is no ndjson of operations") from None


def _apply(site: Site, repo: Repo, tree: dict[str, File], key: str, value: dict[str, Any]) -> None:
    path = value.get("path", "")
    if key == "file":
        if value.get("encoding", "base64") != "base64":
            raise HubError(400, f"Unknown encoding: {value['encoding']!r}")
        try:
            content = base64.b64decode(value["content"], validate=True)
        except (KeyError, binascii.Error):
            raise HubError(400, f"The content of {path} is no base64") from None
        if len(content) > site.settings.lfs_over:
            raise HubError(413, f"{path} is too large for a regular file")
        tree[path] = site.store.blobs.regular(content)
    elif key == "lfsFile":
        sha256 = value.get("oid", "")
        if value.get("algo") != "sha256" or sha256 not in repo.lfs:
            message = "Your push was rejected: an LFS pointer points to a file that was not sent"
            raise HubError(400, f"{message}: {path}")
        size = len(site.store.blobs.get(sha256))
        if value.get("size", size) != size:
            raise HubError(400, f"The size of {path} does not match what was sent")
        tree[path] = pointed(sha256, size)
    elif key == "copyFile":
        source = repo.resolve(value["srcRevision"]).tree if value.get("srcRevision") else tree
        if value.get("srcPath") not in source:
            raise entry_not_found(f"A file with this name doesn't exist: {value.get('srcPath')}")
        tree[path] = source[value["srcPath"]]
    elif key == "deletedFile":
        if path not in tree:
            raise entry_not_found(f"A file with this name doesn't exist: {path}")
        del tree[path]
    elif key == "deletedFolder":
        prefix = path.rstrip("/") + "/"
        inside = [name for name in tree if name.startswith(prefix)]
        if not inside:
            raise entry_not_found(f"A folder with this name doesn't exist: {path}")
        for name in inside:
            del tree[name]
    else:
        raise HubError(400, f"Unknown operation: {key!r}")


def _check_paths(tree: dict[str, File]) -> None:
    for path in tree:
        parts = path.split("/")
        if any(part in ("", ".", "..", ".git") for part in parts) or "\0" in path:
            raise HubError(400, f"Invalid path: {path!r}")
        for depth in range(1, len(parts)):
            if (above := "/".join(parts[:depth])) in tree:
                raise HubError(400, f"{above} is a file and cannot be a folder too")


def _check_readme(site: Site, kind: Kind, tree: dict[str, File]) -> None:
    if "README.md" in tree:
        text = site.store.blobs.get(tree["README.md"].sha256).decode(errors="replace")
        if errors := check_card(text, kind).errors:
            message = "Your push was rejected during the check of README.md's metadata"
            raise HubError(400, message, errors=[{"message": error} for error in errors])
