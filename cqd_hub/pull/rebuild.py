"""A published individual as weights again: its genome over the models that the archive names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cqd_hub.errors import CqdHubError, UserError
from cqd_hub.hub.client import Hub, HubAway
from cqd_hub.hub.reference import Reference, parse
from cqd_hub.pull.merging import made_again
from cqd_hub.pull.published import JSON_LIMIT, Model, Person, Published, check_format, read_json
from cqd_hub.pull.source import Source
from cqd_hub.pull.verify import check_fingerprint

if TYPE_CHECKING:
    from contextlib import ExitStack

    from cqd_hub.genome import Basis, Genome
    from cqd_hub.genome.merge.store import MergeStore
    from cqd_hub.genome.store import FactorStore

_FACTORS = re.compile(r"factors-\d{5}\.safetensors")
_SHARD = 8 << 30  # bytes of a file of factors


@dataclass(frozen=True)
class Places:
    """Where models are that are not to be fetched.

    Args:
        base: Folder of the base.
        experts: Name → folder.
    """

    base: Path | None = None
    experts: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Rebuilt:
    """An individual that can be built.

    Args:
        genome: In the basis that is here.
        basis: Of the archive's models.
        verified: How it is known to be the published one: ``basis`` or ``fingerprint``.
        merges: Holds the merges that it weighs.
    """

    genome: Genome
    basis: Basis
    verified: str
    merges: MergeStore | None = None


def rebuild(
    published: Published,
    person: Person,
    genome: Genome,
    hub: Hub,
    places: Places,
    *,
    stack: ExitStack,
    note: Callable[[str], None],
) -> Rebuilt:
    """Open the models, take or make the basis, and check that the individual is the published one.

    With the very factors that its genome belongs to, it is by construction. Factors made here may
    differ in what a singular value decomposition leaves open: then the fingerprint of the elite's
    own repository decides, and without one the individual is refused.

    What it takes lasts as long as *stack*.

    Raises:
        UserError: A model is missing or another one, or the individual is not the published one.
        RunError: A file is damaged, or the disk is full.
    """
    basis = _open_basis(published, hub, places, note)
    elite = find_elite(published, person, hub, note=note)
    if basis.hash == genome.basis:
        merges = stack.enter_context(made_again(published, person, genome, basis))
        verified = "basis" if merges is None else "basis, with its merges made again"
        if elite is not None:
            check_fingerprint(
                genome, basis, elite[1].get("fingerprint"), where=str(elite[0]), merges=merges
            )
            verified += " and fingerprint"
        return Rebuilt(genome, basis, verified, merges)
    if elite is None or basis.layout != published.layout or genome.merges:
        raise UserError(
            "the factors made here are not those that its genome scales, and no published model "
            "tells whether that matters",
            where=f"{published}: individual {person.id}",
            remedy="ask its owner to push with --with-basis, or to push this individual as a model",
        )
    note("the factors made here differ from the archive's; the published fingerprint decides")
    genome = replace(genome, basis=basis.hash)
    check_fingerprint(genome, basis, elite[1].get("fingerprint"), where=str(elite[0]))
    return Rebuilt(genome, basis, "fingerprint")


def find_elite(
    published: Published, person: Person, hub: Hub, *, note: Callable[[str], None]
) -> tuple[Source, dict[str, Any]] | None:
    """The model repository of an individual and its ``cqd_hub.json``, or None.

    A repository that is gone or private counts as none, with a note.

    Raises:
        UserError: It is of a newer format.
        HubAway: The Hub does not answer.
    """
    meant = {"best": published.head.chosen, f"id-{person.id}": person.id}
    meant |= {f"best-{skill}": published.head.leader(skill) for skill in published.head.skills}
    if person.role == "aggregate":
        meant["aggregate"] = person.id
    for label, repo in sorted(published.head.models_published.items()):
        if meant.get(label) != person.id:
            continue
        try:
            source = Source(hub, parse(repo), note=note)
            data = read_json(
                source.fetch("cqd_hub.json", limit=JSON_LIMIT), f"{source}/cqd_hub.json"
            )
        except HubAway:
            raise
        except CqdHubError as error:
            note(f"the published model of {label} cannot be used: {error}")
            continue
        check_format(data, f"{source}/cqd_hub.json")
        if data.get("run") == published.head.run and data.get("genome_hash") == person.genome_hash:
            return source, data
    return None


def _open_basis(
    published: Published, hub: Hub, places: Places, note: Callable[[str], None]
) -> Basis:
    from cqd_hub.genome import build_basis, open_models

    rank, tail = _settings(published)
    base, experts = _model_folders(published, hub, places)
    ancestor, opened = open_models(base, list(experts.values()), note=note)
    wanted = published.head.models
    _same(ancestor.checkpoint.content_hash, wanted.base, "the base", base)
    for (name, path), expert in zip(experts.items(), opened, strict=True):
        _same(expert.content_hash, wanted.experts[name], f"expert {name}", path)
    if published.head.basis.files:
        found = _published_basis(published, ancestor, opened, tail)
        if found is not None:
            return found
        note("the published factors are not those of this archive's models; factoring here")
    return build_basis(ancestor, opened, rank=rank, tail=tail, progress=note)


def _published_basis(published: Published, base: Any, experts: list[Any], tail: Any) -> Any:
    from cqd_hub.genome.basis import basis_of_factors
    from cqd_hub.genome.store import FactorStore

    stores = []
    for expert in experts:
        folder = f"basis/{expert.content_hash}"
        index = published.source.fetch(f"{folder}/index.json", limit=JSON_LIMIT)
        for name in _checked_index(read_json(index, f"{published}/{folder}/index.json"), published):
            published.source.fetch(f"{folder}/{name}", limit=_SHARD)
        stores.append(FactorStore(index.parent))
    basis = basis_of_factors(base, experts, stores, tail=tail)
    if basis.hash != published.head.basis.hash or basis.layout != published.layout:
        return None
    return basis if all(_fits(store, basis) for store in stores) else None


def _fits(store: FactorStore, basis: Basis) -> bool:
    """Whether factors have the shapes and type of the slots that they are of."""
    from safetensors import SafetensorError, safe_open

    shapes = {slot.name: slot.shape for slot in basis.layout.slots if slot.is_matrix}
    try:
        for name, rank in store.ranks.items():
            with safe_open(store.folder / store.files[name], framework="np") as opened:
                up, down = (opened.get_slice(f"{part}:{name}") for part in ("up", "down"))
                rows, columns = shapes[name]
                good = up.get_shape() == [rows, rank] and down.get_shape() == [rank, columns]
                if not good or {up.get_dtype(), down.get_dtype()} != {"F32"}:
                    return False
    except (KeyError, SafetensorError, OSError):
        return False
    return True


def _checked_index(index: Any, published: Published) -> list[str]:
    """Names of the files that an index of factors names; its hash must follow from its slots."""
    try:
        digest = hashlib.sha256()
        for name, entry in index["slots"].items():
            digest.update(f"{name} {entry['rank']} {entry['hash']}".encode())
        files = sorted({*index["files"], *(entry["file"] for entry in index["slots"].values())})
        good = digest.hexdigest() == index["hash"] and all(map(_FACTORS.fullmatch, files))
        sizes = all(type(size) is int for size in index["files"].values())
        sizes &= all(type(entry["rank"]) is int for entry in index["slots"].values())
    except (KeyError, TypeError, AttributeError):
        good, sizes, files = False, False, []
    if not good or not sizes:
        raise UserError(
            "has an index of factors that cannot be right",
            where=f"{published}/basis",
            remedy="ask its owner to push it again with --with-basis",
        )
    return files


def _model_folders(published: Published, hub: Hub, places: Places) -> tuple[Path, dict[str, Path]]:
    """Folder of the base, and of the experts in the order of the layout."""
    models = published.head.models
    unknown = [name for name in places.experts if name not in models.experts]
    if unknown:
        raise UserError(
            f"no expert {unknown[0]!r}",
            where="--expert",
            remedy=f"its experts are {', '.join(models.experts)}",
        )
    by_hash = {model.sha256: name for name, model in models.experts.items()}
    if sorted(by_hash) != sorted(published.layout.experts):
        raise UserError("names other experts than its layout", where=str(published))
    names = [by_hash[sha256] for sha256 in published.layout.experts]
    wanted = {"--base": (models.base, places.base)}
    wanted |= {
        f"--expert {name}": (models.experts[name], places.experts.get(name)) for name in names
    }
    references = {
        option: _reference(model, option, published)
        for option, (model, given) in wanted.items()
        if given is None
    }
    found: dict[str, Path] = {}
    for option, (_, given) in wanted.items():
        found[option] = given or _fetched(hub, references[option], option)
    base, *experts = found.values()
    return base, dict(zip(names, experts, strict=True))


def _fetched(hub: Hub, reference: Reference, option: str) -> Path:
    from cqd_hub.hub.fetch import fetch

    try:
        (fetched,) = fetch(hub, [reference])
    except UserError as error:
        raise UserError(
            error.what,
            where=error.where,
            remedy=f"{error.remedy}; or give a copy with {_option(option)}, or take the "
            "published files with --published",
        ) from None
    return fetched.path


def _reference(model: Model, option: str, published: Published) -> Reference:
    if model.reference is None:
        raise UserError(
            "was a local folder when the run was pushed",
            where=f"{published}: {option.removeprefix('--')}",
            remedy=f"give it with {_option(option)}",
        )
    reference = parse(model.reference)
    if reference.kind != "model" or not re.fullmatch(r"[0-9a-f]{40}", reference.revision or ""):
        raise UserError(
            "is not named at a commit",
            where=f"{published}: {option.removeprefix('--')}",
            remedy=f"give it with {_option(option)}",
        )
    return reference


def _option(option: str) -> str:
    return f"{option} DIR" if option == "--base" else f"{option}=DIR"


def _same(found: str, wanted: Model, who: str, path: Path) -> None:
    if found != wanted.sha256:
        raise UserError(
            f"is not {who} that the run was made with (sha256 {found[:12]}, not "
            f"{wanted.sha256[:12]})",
            where=str(path),
            remedy="give the same files",
        )


def _settings(published: Published) -> tuple[Any, Any]:
    """``genome.rank`` and ``genome.tail`` of the run."""
    recipe = published.json("run/recipe.json")
    genome = recipe.get("genome") if isinstance(recipe, dict) else None
    settings = genome if isinstance(genome, dict) else {"rank": None}
    rank, tail = settings.get("rank", "full"), settings.get("tail", "tied")
    if ((type(rank) is int and rank > 0) or rank == "full") and tail in ("tied", "drop"):
        return rank, tail
    raise UserError(
        "has a recipe with no rank and tail of the genome",
        where=f"{published}/run/recipe.json",
        remedy="ask its owner to push it again",
    )


def describe(published: Published, person: Person, verified: str) -> str:
    """What lies beside a genome that was pulled: where it comes from, as JSON."""
    models = published.head.models
    return json.dumps(
        {
            "source": str(published),
            "run": published.head.run,
            "individual": person.id,
            "name": person.name,
            "role": person.role,
            "genome_hash": person.genome_hash,
            "basis": published.head.basis.hash,
            "base": models.base.model_dump(),
            "experts": {name: model.model_dump() for name, model in models.experts.items()},
            "optimisation": person.scores,
            "verified": verified,
        },
        indent=1,
    )
