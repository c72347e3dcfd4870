"""Base and experts as the Hub knows them, their licences, and a manifest fit to be published."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from cqd_hub.errors import UserError
from cqd_hub.hub.licences import Licence, Verdict, merged_licence
from cqd_hub.hub.reference import is_reference, parse


class Model(NamedTuple):
    """Base or expert.

    Args:
        name: What the recipe calls it; ``base`` for the base.
        reference: ``ns/name@sha``, or None for a local folder.
        sha256: Of its weights.
        licence: As its card says.
        gated: Whether the Hub asks for consent; None if unknown.
    """

    name: str
    reference: str | None
    sha256: str | None
    licence: Licence
    gated: bool | None

    @property
    def repo(self) -> str | None:
        """``ns/name``."""
        return None if self.reference is None else self.reference.partition("@")[0]

    @property
    def link(self) -> str:
        """As a card names it."""
        if self.repo is None:
            return f"{self.name} (a local folder)"
        return f"[{self.repo}](https://huggingface.co/{self.repo})"

    def record(self) -> dict[str, Any]:
        """As the head holds it."""
        return {
            "reference": self.reference,
            "sha256": self.sha256,
            "licence": self.licence.terms,
            "gated": self.gated,
        }


class Models(NamedTuple):
    """All models of a run.

    Args:
        base: The base.
        experts: In the order of the recipe.
        verdict: What a merge of them carries.
    """

    base: Model
    experts: tuple[Model, ...]
    verdict: Verdict

    @property
    def all(self) -> tuple[Model, ...]:
        """Base first."""
        return (self.base, *self.experts)

    @property
    def card(self) -> dict[str, str]:
        """The licence as a card's metadata names it."""
        if len(self.verdict.unknown) == len(self.all):
            return {"license": "unknown"}
        if self.verdict.name is None:
            return {"license": self.verdict.id}
        name = re.sub(r"[^a-z0-9.]+", "-", self.verdict.name.lower()).strip("-.")
        return {"license": "other", "license_name": name or "unnamed"}

    def record(self) -> dict[str, Any]:
        """As the head holds it."""
        return {
            "base": self.base.record(),
            "experts": {expert.name: expert.record() for expert in self.experts},
        }


def models_of(manifest: dict[str, Any]) -> Models:
    """Read a run's manifest."""
    found = manifest["models"]
    base = _model("base", found["base"])
    experts = tuple(_model(name, entry) for name, entry in found["experts"].items())
    licences = {model.name: model.licence for model in (base, *experts)}
    return Models(base, experts, merged_licence(licences))


def check_licences(models: Models, *, accepted: bool) -> list[str]:
    """Notes on the licences of what is published.

    Raises:
        UserError: A conflict or a gated parent that was not accepted.
    """
    problems = list(models.verdict.conflicts)
    problems += [
        f"{model.repo or model.name} is gated, and what is made of it would not be"
        for model in models.all
        if model.gated
    ]
    if problems and not accepted:
        raise UserError(
            "; ".join(problems),
            where="licences",
            remedy="read the licences; if you may publish this, add --accept-licence",
        )
    said = [f"accepted: {problem}" for problem in problems]
    said += [f"licence: {duty}" for duty in models.verdict.duties]
    if models.verdict.unknown:
        names = ", ".join(models.verdict.unknown)
        said.append(f"no licence is known of {names}; the cards say so")
    return said


def public_manifest(manifest: dict[str, Any], models: Models) -> dict[str, Any]:
    """The manifest with Hub references for paths, or else the folder's name alone."""
    places = {
        str(entry["path"]): model.reference or PurePath(str(entry["path"])).name
        for model, entry in zip(
            models.all,
            [manifest["models"]["base"], *manifest["models"]["experts"].values()],
            strict=True,
        )
        if "path" in entry
    }
    kept = {key: value for key, value in manifest.items() if key != "folder"}
    return _without_paths(kept, places)


def _model(name: str, entry: dict[str, Any]) -> Model:
    reference = entry.get("reference")
    if reference is None and is_reference(str(entry.get("path", "")), Path("/")):
        found = parse(str(entry["path"]))
        # Without a commit it names something that may change: no reference.
        if found.revision and re.fullmatch(r"[0-9a-f]{40}", found.revision):
            reference = str(found)
    if reference is not None:
        reference = reference.removeprefix("hf://")
    sha256 = entry.get("sha256")
    gated = entry.get("gated")
    return Model(
        name,
        reference,
        sha256,
        Licence(entry.get("licence"), entry.get("licence_name")),
        None if gated is None else bool(gated),
    )


def _without_paths(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(inner, places) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner, places) for inner in value]
    if isinstance(value, str):
        if value in places:
            return places[value]
        if value.startswith(("/", "~", "./", "../")):
            return PurePath(value).name
    return value
