"""What a server knows, kept in a folder from one process to the next."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .people import Token
from .site import Site
from .store import Commit, File, Repo


def save(site: Site, folder: Path) -> None:
    """Write everything but the contents (they lie in `folder/blobs`) to `folder/state.json`."""
    value = {
        "tokens": {value: asdict(token) for value, token in site.people.tokens.items()},
        "orgs": site.people.orgs,
        "repos": [_repo_value(repo) for repo in site.store.repos.values()],
        "collections": site.collections,
    }
    part = folder / "state.json.part"
    part.write_text(json.dumps(value), encoding="utf-8")
    os.replace(part, folder / "state.json")


def load(site: Site, folder: Path) -> None:
    """Read what `save` wrote, if it did."""
    path = folder / "state.json"
    if not path.exists():
        return
    value = json.loads(path.read_text(encoding="utf-8"))
    site.people.tokens = {name: Token(**token) for name, token in value["tokens"].items()}
    site.people.orgs = value["orgs"]
    site.collections = value["collections"]
    for entry in value["repos"]:
        repo = _repo(entry)
        site.store.repos[repo.key] = repo


def _repo_value(repo: Repo) -> dict[str, Any]:
    value = {name: getattr(repo, name) for name in _PLAIN}
    value["lfs"] = sorted(repo.lfs)
    value["commits"] = [
        {**vars(commit), "tree": {path: vars(file) for path, file in commit.tree.items()}}
        for commit in repo.commits.values()
    ]
    return value


def _repo(value: dict[str, Any]) -> Repo:
    repo = Repo(**{name: value[name] for name in _PLAIN}, lfs=set(value["lfs"]))
    for entry in value["commits"]:
        tree = {path: File(**file) for path, file in entry.pop("tree").items()}
        commit = Commit(**entry, tree=tree)
        repo.commits[commit.oid] = commit
    return repo


_PLAIN = (
    *("kind", "id", "private", "gated", "granted"),
    *("created", "modified", "sdk", "branches", "tags"),
)
