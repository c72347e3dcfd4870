"""One individual of a run as a model that other tools load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from cqd_hub.errors import UserError
from cqd_hub.genome import Basis, Genome, Materialiser, build_basis, open_base, open_expert
from cqd_hub.genome.export import export_adapter, export_checkpoint, export_mergekit
from cqd_hub.recipe import Recipe
from cqd_hub.run.directory import read_manifest, read_recipe
from cqd_hub.run.journal import Journal
from cqd_hub.run.select import find
from cqd_hub.run.workbench import model_folder

Form = Literal["checkpoint", "adapter", "mergekit"]


def export_individual(
    folder: Path,
    who: str,
    to: Path,
    *,
    form: Form = "checkpoint",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    rank: int | None = None,
) -> Iterator[str]:
    """Export, yielding a line for everything worth knowing.

    Args:
        folder: The run directory.
        who: See `cqd_hub.run.select.WHO`.
        to: A folder that does not exist yet, or is empty.
        form: A full model, a PEFT LoRA adapter, or a mergekit recipe with its adapter.
        dtype: Of a checkpoint's tensors; each tensor as in the base by default.
        rank: Of an adapter; exact where it can be by default.

    Raises:
        UserError: No such individual, models changed since the run, or *to* is taken.
    """
    recipe = read_recipe(folder)
    journal = Journal(folder)
    try:
        individual = find(who, folder, recipe, journal)
    finally:
        journal.close()
    basis = open_basis(folder, recipe)
    genome = Genome.from_bytes(individual.genome)
    kind = f"{individual.role}, id {individual.id}, genome {individual.genome_hash[:12]}"
    yield f"{individual.name} ({kind})"
    if form == "checkpoint":
        size = export_checkpoint(genome, Materialiser(basis), to, dtype=dtype)
        yield f"{size / 1e6:.1f} MB; loads with AutoModelForCausalLM.from_pretrained"
    elif form == "adapter":
        base = str(basis.base.checkpoint.path)
        made = export_adapter(genome, basis, to, rank=rank, base_name=base)
        error = f"relative error {made.relative_error:.2g}"
        yield f"{made.bytes / 1e6:.1f} MB, rank {made.rank}, {error}"
    else:
        export_mergekit(genome, basis, to)
        yield f"run it as {to / 'README.md'} says"


def open_basis(folder: Path, recipe: Recipe) -> Basis:
    """The basis a run's genomes refer to.

    Raises:
        UserError: The models are not those the run was made with.
    """
    manifest = read_manifest(folder)
    assert manifest is not None
    place = Path(manifest["folder"])
    base = open_base(model_folder(recipe.base, place, "base"))
    experts = [
        open_expert(base, model_folder(where, place, f"experts.{name}"))
        for name, where in recipe.experts.items()
    ]
    basis = build_basis(base, experts, rank=recipe.genome.rank, tail=recipe.genome.tail)
    if basis.hash != manifest["basis"]:
        raise UserError(
            "base or experts are not those the run was made with",
            where=str(place),
            remedy="restore them",
        )
    return basis
