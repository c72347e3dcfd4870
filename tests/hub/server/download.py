"""Serving files, whole or by ranges."""

from __future__ import annotations

import mimetypes
import re
from urllib.parse import quote

from .messages import HubError, Request, Response
from .routing import route
from .site import Site
from .store import Kind

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@route("GET HEAD", "/{prefix}{repo}/resolve/{revision}/{path}")
def resolve(
    site: Site, request: Request, kind: Kind, repo: str, revision: str, path: str
) -> Response:
    found = site.opened(request, kind, repo)
    commit = found.resolve(revision)
    file = found.file(commit, path)
    headers = {
        "X-Repo-Commit": commit.oid,
        "ETag": f'"{file.etag}"',
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rsplit('/')[-1])}",
        "Access-Control-Expose-Headers": "X-Repo-Commit,ETag,X-Linked-Size,X-Linked-Etag,Location",
    }
    if not file.lfs:
        return _content(request, site.store.blobs.get(file.sha256), headers, path)
    headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
    if not site.settings.redirect:
        return _content(request, site.store.blobs.get(file.sha256), headers, path)
    signed = site.sign(f"/_storage/{found.kind}s/{found.id}/{file.sha256}/{quote(path)}")
    headers |= {"Location": site.storage_url + signed, "Content-Type": "text/plain"}
    return Response(302, b"Found. Redirecting to storage", headers)


@route("GET HEAD", "/_storage/{kind}s/{repo}/{sha256}/{path}")
def storage(
    site: Site, request: Request, kind: Kind, repo: str, sha256: str, path: str
) -> Response:
    """The place large files are redirected to; asks for a signature, not for a token."""
    site.check_signature(request)
    return _content(request, site.store.blobs.get(sha256), {"ETag": f'"{sha256}"'}, path)


def _content(request: Request, content: bytes, headers: dict[str, str], path: str) -> Response:
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    if kind.startswith("text/"):
        kind = "text/plain; charset=utf-8"
    headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": kind}
    match = _RANGE.fullmatch(request.headers.get("Range", ""))
    if request.method == "HEAD" or match is None or match.groups() == ("", ""):
        return Response(200, content, headers)
    first, last = match.groups()
    size = len(content)
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= size or start >= end:
        error = HubError(416, "The requested range cannot be had")
        error.headers["Content-Range"] = f"bytes */{size}"
        raise error
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return Response(206, content[start:end], headers)
