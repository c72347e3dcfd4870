"""What /api/models/… says about a repository, computed from its files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from math import prod
from typing import Any

import yaml

from .cards import front_matter
from .messages import Request
from .site import Site
from .store import Commit, File, Repo, lfs_pointer


def describe(site: Site, request: Request | None, repo: Repo, revision: str) -> dict[str, Any]:
    """The usual fields or, where the request asks with `expand`, those named."""
    commit = repo.resolve(revision)
    full = _fields(site, repo, commit, blobs=bool(request and request.flag("blobs")))
    query = request.query if request else {}
    wanted = set(query.get("expand", []) + query.get("expand[]", []))
    if wanted:
        full |= _extra(site, repo, commit, wanted)
        wanted |= {"_id", "id"}
        return {name: value for name, value in full.items() if name in wanted}
    return full


def _fields(site: Site, repo: Repo, commit: Commit, *, blobs: bool) -> dict[str, Any]:
    card = read_card(site, commit)
    value: dict[str, Any] = {
        "_id": hashlib.sha256(repo.key.encode()).hexdigest()[:24],
        "id": repo.id,
        "author": repo.namespace,
        "sha": commit.oid,
        "lastModified": repo.modified,
        "createdAt": repo.created,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": _tags(repo, card),
        "siblings": [_sibling(path, file, blobs) for path, file in sorted(commit.tree.items())],
        "usedStorage": sum(file.size for file in set(commit.tree.values())),
    }
    if card:
        value["cardData"] = card
    if repo.kind == "model":
        value["modelId"] = repo.id
        value["spaces"] = []
        for name in ("library_name", "pipeline_tag", "model-index"):
            if name in card:
                value[name] = card[name]
        if config := _json_file(site, commit, "config.json"):
            kept = {"architectures", "model_type"} & set(config)
            value["config"] = {name: config[name] for name in kept}
        if counts := _parameters(site, commit):
            value["safetensors"] = {"parameters": counts, "total": sum(counts.values())}
    elif repo.kind == "space":
        value["sdk"] = repo.sdk
    return value


def _extra(site: Site, repo: Repo, commit: Commit, wanted: set[str]) -> dict[str, Any]:
    card = read_card(site, commit)
    extra: dict[str, Any] = {"downloadsAllTime": 0, "trendingScore": 0, "resourceGroup": None}
    if "baseModels" in wanted and card.get("base_model"):
        names = card["base_model"]
        names = [names] if isinstance(names, str) else names
        relation = card.get("base_model_relation", "merge" if len(names) > 1 else "finetune")
        models = [{"_id": hashlib.sha256(n.encode()).hexdigest()[:24], "id": n} for n in names]
        extra["baseModels"] = {"relation": relation, "models": models}
    if "childrenModelCount" in wanted:
        extra["childrenModelCount"] = sum(
            repo.id in _listed(read_card(site, other.resolve("main")).get("base_model"))
            for other in site.store.repos.values()
            if other.kind == "model"
        )
    if "evalResults" in wanted:
        extra["evalResults"] = [
            {"filename": path, "data": entry}
            for path, file in sorted(commit.tree.items())
            if path.startswith(".eval_results/") and path.endswith((".yaml", ".yml"))
            for entry in yaml.safe_load(site.store.blobs.get(file.sha256)) or []
        ]
    return extra


def read_card(site: Site, commit: Commit) -> dict[str, Any]:
    """The metadata of the README, {} where there is none that can be read."""
    file = commit.tree.get("README.md")
    if file is None:
        return {}
    text = site.store.blobs.get(file.sha256).decode(errors="replace")
    try:
        value = front_matter(text)
    except yaml.YAMLError:
        return {}
    return json.loads(json.dumps(value, default=str)) if isinstance(value, dict) else {}


def safetensors_header(content: bytes) -> dict[str, Any]:
    """The header of a safetensors file, {} where it cannot be read."""
    length = int.from_bytes(content[:8], "little")
    try:
        value = json.loads(content[8 : 8 + length])
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _parameters(site: Site, commit: Commit) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for path, file in commit.tree.items():
        if "/" not in path and path.startswith("model") and path.endswith(".safetensors"):
            header = safetensors_header(site.store.blobs.get(file.sha256))
            header.pop("__metadata__", None)
            for tensor in header.values():
                counts[tensor["dtype"]] += prod(tensor["shape"])
    return dict(counts)


def _sibling(path: str, file: File, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    value: dict[str, Any] = {"rfilename": path, "size": file.size, "blobId": file.oid}
    if file.lfs:
        value["lfs"] = lfs_value(file, "sha256")
    return value


def lfs_value(file: File, name: str) -> dict[str, Any]:
    """The large-file part of an entry; the Hub names the hash `sha256` or `oid` by place."""
    pointer = lfs_pointer(file.sha256, file.size)
    return {name: file.sha256, "size": file.size, "pointerSize": len(pointer)}


def _tags(repo: Repo, card: dict[str, Any]) -> list[str]:
    tags = [*_listed(card.get("tags")), *_listed(card.get("library_name"))]
    tags += [f"base_model:{name}" for name in _listed(card.get("base_model"))]
    for field in ("license", "datasets"):
        tags += [f"{field.removesuffix('s')}:{name}" for name in _listed(card.get(field))]
    return [*dict.fromkeys([*tags, "region:us"])]


def _listed(value: object) -> list[str]:
    if value is None:
        return []
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _json_file(site: Site, commit: Commit, path: str) -> dict[str, Any]:
    file = commit.tree.get(path)
    if file is None:
        return {}
    try:
        value = json.loads(site.store.blobs.get(file.sha256))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
