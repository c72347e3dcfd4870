"""Large files: asking what to send, sending it whole or in parts, checking it."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from .messages import HubError, Request, Response, answer
from .routing import route
from .site import Site
from .store import Kind, Repo

_MEDIA = "application/vnd.git-lfs+json"


@route("POST", "/{prefix}{repo}.git/info/lfs/objects/batch")
def batch(site: Site, request: Request, kind: Kind, repo: str) -> Response:
    found = site.writable(request, kind, repo)
    asked = request.json()
    if asked.get("operation") != "upload" or asked.get("hash_algo", "sha256") != "sha256":
        raise HubError(422, "Only uploads by sha256 are served here")
    if len(asked.get("objects", [])) > 256:
        raise HubError(413, "At most 256 objects per request")
    objects = [_actions(site, found, entry["oid"], entry["size"]) for entry in asked["objects"]]
    parts = any("chunk_size" in _header(entry) for entry in objects)
    value = {"transfer": "multipart" if parts else "basic", "objects": objects}
    return answer(value, headers={"Content-Type": _MEDIA})


def _header(entry: dict[str, Any]) -> dict[str, str]:
    header: dict[str, str] = entry.get("actions", {}).get("upload", {}).get("header", {})
    return header


def _actions(site: Site, repo: Repo, oid: str, size: int) -> dict[str, Any]:
    value: dict[str, Any] = {"oid": oid, "size": size}
    if not re.fullmatch(r"[0-9a-f]{64}", oid):
        return {**value, "error": {"code": 422, "message": f"Not a sha256: {oid}"}}
    if oid in repo.lfs:
        return value  # nothing to send
    path = f"/_lfs/{repo.kind}s/{repo.id}/{oid}"
    upload: dict[str, Any] = {"href": site.url + site.sign(path), "header": {}}
    settings = site.settings
    if size > settings.multipart_over:
        parts = -(-size // settings.part_size)
        upload["href"] = site.url + site.sign(f"{path}/complete")
        upload["header"] = {"chunk_size": str(settings.part_size)} | {
            str(number): site.storage_url + site.sign(f"{path}/part/{number}")
            for number in range(1, parts + 1)
        }
    verify = {"href": f"{site.url}{path}/verify", "header": {}}
    return {**value, "authenticated": True, "actions": {"upload": upload, "verify": verify}}


def _target(site: Site, kind: Kind, repo: str) -> Repo:
    found = site.store.repos.get(Repo(kind, repo).key)
    if found is None:
        raise HubError(404, "The repository has been deleted", "RepoNotFound")
    return found


def _keep(site: Site, repo: Repo, oid: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != oid:
        raise HubError(400, "The content does not have the hash it was announced with")
    site.store.blobs.put(content)
    repo.lfs.add(oid)


@route("PUT", "/_lfs/{kind}s/{repo}/{oid}")
def put(site: Site, request: Request, kind: Kind, repo: str, oid: str) -> Response:
    site.check_signature(request)
    _keep(site, _target(site, kind, repo), oid, request.body)
    return Response(200)


@route("PUT", "/_lfs/{kind}s/{repo}/{oid}/part/{number}")
def part(site: Site, request: Request, kind: Kind, repo: str, oid: str, number: str) -> Response:
    site.check_signature(request)
    site.parts[f"{Repo(kind, repo).key} {oid}", int(number)] = request.body
    return Response(200, headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


@route("POST", "/_lfs/{kind}s/{repo}/{oid}/complete")
def complete(site: Site, request: Request, kind: Kind, repo: str, oid: str) -> Response:
    site.check_signature(request)
    found = _target(site, kind, repo)
    content = bytearray()
    keys = [(f"{found.key} {oid}", entry["partNumber"]) for entry in request.json()["parts"]]
    for key, entry in zip(keys, request.json()["parts"], strict=True):
        sent = site.parts.get(key)
        if sent is None or hashlib.md5(sent).hexdigest() != entry["etag"].strip('"'):
            raise HubError(400, f"Part {key[1]} was not sent or does not match")
        content += sent
    _keep(site, found, oid, bytes(content))
    for key in keys:
        del site.parts[key]
    return answer({})


@route("POST", "/_lfs/{kind}s/{repo}/{oid}/verify")
def verify(site: Site, request: Request, kind: Kind, repo: str, oid: str) -> Response:
    found = site.writable(request, kind, repo)
    if oid not in found.lfs:
        raise HubError(404, "The file was not sent", "EntryNotFound")
    if request.json().get("size") != len(site.store.blobs.get(oid)):
        raise HubError(400, "The size does not match what was sent")
    return answer({})
