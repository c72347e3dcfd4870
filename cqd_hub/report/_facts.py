"""What the manifest says of a run, in words, and how to run it again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cqd_hub import assets
from cqd_hub.errors import CqdHubError
from cqd_hub.recipe import Recipe, load_yaml
from cqd_hub.report._data import RunData

_HASH = re.compile(r"[0-9a-f]{20,}")
_WORDS = {
    "path": "",
    "reference": "from",
    "revision": "at",
    "licence_name": "licence name",
    "base_model": "made from",
    "samples.optimisation": "samples: optimisation",
    "samples.validation": "validation",
    "samples.test": "test",
}
_SUBJECTS = ("created", "models", "basis", "tasks", "engine", "sandbox", "machine", "versions")
_MACHINE = ("device", "threads")

Facts = list[tuple[str, str]]  # (name, text)


class Reproduction(NamedTuple):
    """How to run it again.

    Attributes:
        command: The command line.
        shipped: Whether the recipe is one that comes with cqd-hub.
        folder: What relative paths of the recipe started from; empty where nobody recorded it.
    """

    command: str
    shipped: bool
    folder: str


def reproduction(run: RunData) -> Reproduction:
    """Return how to run *run* again: by the recipe's name where it came with cqd-hub."""
    name, recipe = run.recipe.name, run.recipe
    folder = str(run.manifest.get("folder") or "")
    options: list[str] = []
    shipped = _shipped(name)
    if shipped is not None:
        if recipe.search.children != shipped.search.children:
            options += ["--children", str(recipe.search.children)]
        if recipe.seed != shipped.seed:
            options += ["--seed", str(recipe.seed)]
        search = shipped.search.model_copy(update={"children": recipe.search.children})
        same = shipped.model_copy(update={"seed": recipe.seed, "search": search}) == recipe
        if same and "seeds" not in run.manifest:
            return Reproduction(shlex.join(["cqd-hub", "evolve", name, *options]), True, folder)
    return Reproduction(shlex.join(["cqd-hub", "evolve", f"{name}.yaml"]), False, folder)


def _shipped(name: str) -> Recipe | None:
    path = assets.folder("recipes") / f"{name}.yaml"
    if Path(name).name != name or not path.is_file():
        return None
    try:
        return load_yaml(path, Recipe, [])
    except CqdHubError:
        return None


def about(manifest: Mapping[str, Any]) -> list[tuple[str, Facts]]:
    """Return what the manifest says of each subject that it says something of."""
    told = dict(manifest)
    models, versions = told.get("models"), told.get("versions")
    if isinstance(models, Mapping) and isinstance(models.get("experts"), Mapping):
        experts = {f"expert {name}": one for name, one in models["experts"].items()}
        told["models"] = {"base": models.get("base"), **experts}
    if isinstance(versions, Mapping):
        told["machine"] = {name: versions[name] for name in _MACHINE if name in versions}
        told["versions"] = {n: text for n, text in versions.items() if n not in _MACHINE}
    return [(name.capitalize(), facts(told[name])) for name in _SUBJECTS if told.get(name)]


def facts(value: Any) -> Facts:
    """Return a piece of the manifest as lines: what is unknown left out, long hashes cut to 12."""
    if not isinstance(value, Mapping):
        return [("", _shortened(value))]
    lines = []
    for name, inner in value.items():
        parts = [
            f"{_WORDS.get(key, key)} {_shortened(leaf)}".strip() for key, leaf in _known(inner)
        ]
        if parts:
            lines.append((str(name), " · ".join(parts)))
    return lines


def _known(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _known(inner, f"{name}.{key}" if name else str(key))
    elif value is not None and value != [] and value != "":
        yield name, value


def _shortened(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return _HASH.sub(lambda found: found.group()[:12] + "…", text)
