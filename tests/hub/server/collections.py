"""Collections of repositories."""

from __future__ import annotations

import hashlib
import re
from typing import Any, cast

from .messages import HubError, Request, Response, answer
from .routing import paged, route
from .site import Site
from .store import now


@route("GET", "/api/collections")
def listing(site: Site, request: Request) -> Response:
    owner, item = (request.query.get(name, [""])[0] for name in ("owner", "item"))
    values = []
    for slug, collection in site.collections.items():
        if not site.sees_collection(request, collection):
            continue
        names = {f"{entry['type']}s/{entry['id']}" for entry in collection["items"]}
        if (not owner or collection["namespace"] == owner) and (not item or item in names):
            value = _value(site, slug)
            del value["position"]  # the client counts by itself
            values.append(value)
    return paged(site, request, values, site.settings.commits_page, lambda value: value)


@route("POST", "/api/collections")
def create(site: Site, request: Request) -> Response:
    asked = request.json()
    visitor = site.visitor(request)
    if visitor.name is None:
        raise HubError(401, "Invalid username or password.")
    title, namespace = asked.get("title", ""), asked.get("namespace") or visitor.name
    if not visitor.creates(namespace):
        raise HubError(403, f"You don't have the rights to create a collection under {namespace}")
    if not 0 < len(title) < 60:
        raise HubError(400, "The title must have 1 to 59 characters")
    if len(asked.get("description") or "") > 150:
        raise HubError(400, "The description must have at most 150 characters")
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    number = hashlib.sha256(f"{namespace} {title}".encode()).hexdigest()[:24]
    slug = f"{namespace}/{words}-{number}"
    if slug in site.collections:
        raise HubError(409, "This collection already exists", slug=slug)
    site.collections[slug] = {
        "namespace": namespace,
        "title": title,
        "description": asked.get("description"),
        "private": bool(asked.get("private")),
        "theme": "blue",
        "lastUpdated": now(),
        "items": [],
    }
    return answer(_value(site, slug))


@route("GET", "/api/collections/{namespace}/{name}")
def show(site: Site, request: Request, namespace: str, name: str) -> Response:
    site.visible_collection(request, f"{namespace}/{name}")
    return answer(_value(site, f"{namespace}/{name}"))


@route("PATCH", "/api/collections/{namespace}/{name}")
def update(site: Site, request: Request, namespace: str, name: str) -> Response:
    slug = f"{namespace}/{name}"
    collection = _changeable(site, request, slug)
    for field in ("title", "description", "private", "theme"):
        if field in (asked := request.json()):
            collection[field] = asked[field]
    return answer({"success": True, "data": _value(site, slug)})


@route("DELETE", "/api/collections/{namespace}/{name}")
def delete(site: Site, request: Request, namespace: str, name: str) -> Response:
    _changeable(site, request, f"{namespace}/{name}")
    del site.collections[f"{namespace}/{name}"]
    return answer({})


@route("POST", "/api/collections/{namespace}/{name}/items")
def add_item(site: Site, request: Request, namespace: str, name: str) -> Response:
    slug = f"{namespace}/{name}"
    collection = _changeable(site, request, slug)
    asked = request.json()
    kind, item_id = asked["item"]["type"], asked["item"]["id"]
    if kind not in ("model", "dataset", "space"):
        raise HubError(400, f"Items of this type are not served here: {kind}")
    repo = site.repo(request, kind, item_id)
    if len(asked.get("note") or "") > 500:
        raise HubError(400, "A note must have at most 500 characters")
    if any(item["key"] == repo.key for item in collection["items"]):
        raise HubError(409, "The item is in the collection already")
    number = hashlib.sha256(f"{slug} {repo.key}".encode()).hexdigest()[:24]
    entry = {"_id": number, "key": repo.key, "id": repo.id, "type": kind, "note": asked.get("note")}
    collection["items"].append(entry)
    collection["lastUpdated"] = now()
    return answer(_value(site, slug))


@route("PATCH", "/api/collections/{namespace}/{name}/items/{number}")
def update_item(site: Site, request: Request, namespace: str, name: str, number: str) -> Response:
    collection = _changeable(site, request, f"{namespace}/{name}")
    entry = _item(collection, number)
    asked = request.json()
    if "note" in asked:
        entry["note"] = asked["note"]
    if "position" in asked:
        collection["items"].remove(entry)
        collection["items"].insert(asked["position"], entry)
    return answer({})


@route("DELETE", "/api/collections/{namespace}/{name}/items/{number}")
def delete_item(site: Site, request: Request, namespace: str, name: str, number: str) -> Response:
    collection = _changeable(site, request, f"{namespace}/{name}")
    collection["items"].remove(_item(collection, number))
    return answer({})


def _item(collection: dict[str, Any], number: str) -> dict[str, Any]:
    for entry in collection["items"]:
        if entry["_id"] == number:
            return cast(dict[str, Any], entry)
    raise HubError(404, "The item is not in the collection")


def _changeable(site: Site, request: Request, slug: str) -> dict[str, Any]:
    collection = site.visible_collection(request, slug)
    if not site.visitor(request).creates(collection["namespace"]):
        raise HubError(403, "You don't have the rights to change this collection")
    return collection


def _value(site: Site, slug: str) -> dict[str, Any]:
    collection = site.collections[slug]
    items = [
        {
            "_id": entry["_id"],
            "id": entry["id"],
            "type": entry["type"],
            "position": position,
            "repoType": entry["type"],
            **({"note": {"text": entry["note"], "html": entry["note"]}} if entry["note"] else {}),
        }
        for position, entry in enumerate(collection["items"])
    ]
    owner = {"name": collection["namespace"], "type": "user"}
    plain = {name: collection[name] for name in _PLAIN}
    return {**plain, "slug": slug, "items": items, "owner": owner, "position": 0, "upvotes": 0}


_PLAIN = ("title", "description", "private", "theme", "lastUpdated")
