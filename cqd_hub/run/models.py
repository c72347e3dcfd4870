"""Models by name: a local folder, or one of the Hub, fetched at the commit a run is pinned to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cqd_hub.errors import CqdHubError, UserError
from cqd_hub.hub.fetch import Fetched, fetch, look
from cqd_hub.hub.licences import Licence, base_models, merged_licence, read_card, read_licence
from cqd_hub.hub.reference import Reference, is_reference, parse
from cqd_hub.recipe import Recipe

if TYPE_CHECKING:
    from cqd_hub.genome.models.experts import Base, Expert

_COMMIT = re.compile(r"[0-9a-f]{40}")
Note = Callable[[str], None]


@dataclass(frozen=True)
class Model:
    """A model on this disk.

    Args:
        place: How it was named.
        path: Its folder.
        fetched: What the Hub says of it, if it is from there.
    """

    place: str
    path: Path
    fetched: Fetched | None = None

    @property
    def licence(self) -> Licence:
        """As its card has it."""
        return self.fetched.licence if self.fetched else read_licence(self.path)

    def record(self, content_hash: str) -> dict[str, Any]:
        """Its entry in a manifest."""
        licence, fetched = self.licence, self.fetched
        card = read_card(self.path) if fetched is None else {}
        return {
            "path": self.place,
            "reference": fetched.reference if fetched else None,
            "sha256": content_hash,
            "licence": licence.id,
            "licence_name": licence.name,
            "gated": fetched.gated if fetched else None,
            "base_model": list(fetched.base_model if fetched else base_models(card)),
        }


@dataclass(frozen=True)
class Models:
    """Base and experts of a recipe."""

    base: Model
    experts: dict[str, Model]

    @property
    def everyone(self) -> dict[str, Model]:
        """By name, the base first."""
        return {"base": self.base, **self.experts}

    @property
    def pins(self) -> dict[str, str]:
        """Place → commit of those that are from the Hub."""
        everyone = self.everyone.values()
        return {model.place: model.fetched.sha for model in everyone if model.fetched}

    @contextmanager
    def speaking(self, note: Note) -> Iterator[Note]:
        """Errors in the block, and lines for *note*, name models of the Hub as they were given."""
        names = {model.path: model.place for model in self.everyone.values() if model.fetched}
        with _speaking(names):
            yield lambda line: note(_named(line, names))

    def licence(self) -> dict[str, Any]:
        """What a merge of them is under, for a manifest; see `merged_licence`."""
        return asdict(
            merged_licence({name: model.licence for name, model in self.everyone.items()})
        )


def find_models(
    recipe: Recipe, folder: Path, *, pins: Mapping[str, str] | None = None, note: Note
) -> Models:
    """The models that a recipe names, fetched where they are on the Hub.

    Before weights are downloaded, all that headers, configs and tokenizers tell is checked.

    Args:
        recipe: Names them; relative paths start from *folder*.
        pins: Place → commit that a run keeps to, whatever its branch holds by now.
        note: Called with a line for what takes time.

    Raises:
        UserError: No such model, or not one that can be merged.
        RunError: The Hub is away, or a download cannot be completed.
    """
    named = {"base": recipe.base}
    named |= {f"experts.{name}": place for name, place in recipe.experts.items()}
    found = list(_find(named, folder, pins or {}, note).values())
    return Models(found[0], dict(zip(recipe.experts, found[1:], strict=True)))


def open_found(models: Models, note: Note) -> tuple[Base, list[Expert]]:
    """Open them, speaking of the Hub's by the names they were given by."""
    from cqd_hub.genome import open_models

    with models.speaking(note) as told:
        experts = [model.path for model in models.experts.values()]
        return open_models(models.base.path, experts, note=told)


def check_places(places: Sequence[str], folder: Path, note: Note) -> list[bool]:
    """Check a base and its experts without downloading weights.

    Args:
        places: The base first.

    Returns:
        For each, whether it is a PEFT adapter.

    Raises:
        UserError: No such model, or not one that can be merged with the base.
    """
    named = {place: place for place in places}
    local, remote = _sorted(named, folder, {}, note)
    with _locally_missing(named, remote, folder), _looked_at(remote, note) as seen:
        names = {path: place for place, path in seen.items()}
        folders = [{**local, **seen}[place] for place in places]
        from cqd_hub.genome.models.opening import check_models

        with _speaking(names):
            check_models(folders[0], folders[1:], note=lambda line: note(_named(line, names)))
        return [(path / "adapter_config.json").exists() for path in folders]


class Look(NamedTuple):
    """A recipe's models, as far as headers tell.

    Args:
        base: Of which headers may be asked.
        experts: Likewise; None for an adapter that is to be folded.
        missing: Bytes of weights that are still to be downloaded.
    """

    base: Base
    experts: list[Expert | None]
    missing: int


@contextmanager
def looked_at(recipe: Recipe, folder: Path, note: Note) -> Iterator[Look]:
    """A recipe's models for the block, without downloading weights.

    Raises:
        UserError: No such model, or not one that can be merged with the base.
        RunError: The Hub does not answer.
    """
    named = {"base": recipe.base}
    named |= {f"experts.{name}": place for name, place in recipe.experts.items()}
    local, remote = _sorted(named, folder, {}, note)
    with _locally_missing(named, remote, folder), _looked_at(remote, note) as seen:
        from cqd_hub.genome.models.opening import check_models

        folders = [{**local, **seen}[where] for where in named]
        with _speaking({path: named[where] for where, path in seen.items()}):
            base, experts = check_models(folders[0], folders[1:], note=note)
            # What is here is linked to; of the rest there is a header with a hole behind it.
            files = {file for path in seen.values() for file in path.glob("*.safetensors")}
            holes = [file.stat() for file in files if not file.is_symlink()]
            missing = sum(one.st_size for one in holes if one.st_blocks * 512 < one.st_size)
            yield Look(base, experts, missing)


def pins_of(manifest: Mapping[str, Any] | None) -> dict[str, str]:
    """Place → commit of every model from the Hub that a run's manifest names."""
    models = (manifest or {}).get("models", {})
    entries = [models.get("base", {}), *models.get("experts", {}).values()]
    return {
        entry["path"]: entry["reference"].rpartition("@")[2]
        for entry in entries
        if entry.get("reference")
    }


def model_folder(place: str, folder: Path, where: str) -> Path:
    """The folder that a recipe means by *place*, relative to the recipe's *folder*.

    Raises:
        UserError: There is none; names *where* in the recipe.
    """
    path = Path(place).expanduser()
    path = path if path.is_absolute() else folder / path
    if not path.is_dir():
        raise UserError(
            f"{where}: no such model folder",
            where=str(path),
            remedy="give a folder, relative to the recipe, or a model of the Hub: ns/name",
        )
    return path.resolve()


def _find(
    named: Mapping[str, str], folder: Path, pins: Mapping[str, str], note: Note
) -> dict[str, Model]:
    """By what a recipe calls them; the first is the base."""
    local, remote = _sorted(named, folder, pins, note)
    fetched: dict[str, Fetched] = {}
    if remote:
        from cqd_hub.hub.client import Hub

        def check(folders: Sequence[Path]) -> None:
            from cqd_hub.genome.models.opening import check_models

            seen = dict(zip(remote, folders, strict=True))
            paths = [{**local, **seen}[where] for where in named]
            with _speaking({path: named[where] for where, path in seen.items()}):
                check_models(paths[0], paths[1:])

        with _locally_missing(named, remote, folder):
            made = fetch(Hub(note=note), list(remote.values()), check=check)
        fetched = dict(zip(remote, made, strict=True))
    return {
        where: Model(place, fetched[where].path, fetched[where])
        if where in fetched
        else Model(place, local[where])
        for where, place in named.items()
    }


def _sorted(
    named: Mapping[str, str], folder: Path, pins: Mapping[str, str], note: Note
) -> tuple[dict[str, Path], dict[str, Reference]]:
    """Folders that are here, and references of the Hub at the commits they are pinned to."""
    local: dict[str, Path] = {}
    remote: dict[str, Reference] = {}
    kept = []
    for where, place in named.items():
        if not is_reference(place, folder):
            local[where] = model_folder(place, folder, where)
            continue
        reference = parse(place)
        pin = pins.get(place)
        if pin and not _COMMIT.fullmatch(reference.revision or ""):
            reference = reference._replace(revision=pin)
            kept.append(f"{place} at {pin[:12]}")
        remote[where] = reference
    if kept:
        note(f"models as they were when the run began: {', '.join(dict.fromkeys(kept))}")
    return local, remote


@contextmanager
def _looked_at(remote: Mapping[str, Reference], note: Note) -> Iterator[dict[str, Path]]:
    if not remote:
        yield {}
        return
    from cqd_hub.hub.client import Hub

    with look(Hub(note=note), list(remote.values())) as folders:
        yield dict(zip(remote, folders, strict=True))


@contextmanager
def _locally_missing(
    named: Mapping[str, str], remote: Mapping[str, Reference], folder: Path
) -> Iterator[None]:
    """Say of a name that is not on the Hub that no folder is called so either."""
    try:
        yield
    except UserError as error:
        for where, reference in remote.items():
            plain = not named[where].startswith("hf://")
            if plain and error.where == str(reference) and error.what.startswith("is not "):
                raise UserError(
                    f"{where}: {error.what}; nor is there a folder {folder / named[where]}",
                    where=error.where,
                    remedy=error.remedy,
                ) from None
        raise


@contextmanager
def _speaking(names: Mapping[Path, str]) -> Iterator[None]:
    """Errors about a folder of the cache speak of the model by its name."""
    try:
        yield
    except CqdHubError as error:
        what, where, remedy = (_named(t, names) for t in (error.what, error.where, error.remedy))
        raise type(error)(what, where=where, remedy=remedy) from error.__cause__


def _named(text: str, names: Mapping[Path, str]) -> str:
    for path, name in names.items():
        text = text.replace(str(path), name).replace(path.name, name)
    return text
