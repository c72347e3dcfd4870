"""One individual of a run as a model that other tools load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from cqd_hub.genome import Genome, Materialiser
from cqd_hub.genome.export import export_adapter, export_checkpoint, export_mergekit
from cqd_hub.run.directory import read_manifest, read_recipe
from cqd_hub.run.journal import Individual, Journal
from cqd_hub.run.select import find
from cqd_hub.run.workbench import open_basis

Form = Literal["checkpoint", "adapter", "mergekit"]


def export_individual(
    folder: Path,
    who: str,
    to: Path,
    *,
    form: Form = "checkpoint",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    rank: int | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Individual:
    """Export one individual and return its record.

    Args:
        folder: The run directory.
        who: See `cqd_hub.run.select.WHO`.
        to: A folder that does not exist yet, or is empty.
        form: A full model, a PEFT LoRA adapter, or a mergekit recipe with its adapter.
        dtype: Of a checkpoint's tensors; each tensor as in the base by default.
        rank: Of an adapter; exact where it can be by default.
        note: Called with a line for everything worth knowing.

    Raises:
        UserError: No such individual, models changed since the run, or *to* is taken.
    """
    recipe = read_recipe(folder)
    journal = Journal(folder)
    try:
        individual = find(who, folder, recipe, journal)
    finally:
        journal.close()
    manifest = read_manifest(folder)
    assert manifest is not None  # read_recipe has read it
    basis = open_basis(recipe, Path(manifest["folder"]), expected=manifest["basis"], note=note)
    genome = Genome.from_bytes(individual.genome)
    kind = f"{individual.role}, id {individual.id}, genome {individual.genome_hash[:12]}"
    note(f"{individual.name} ({kind})")
    if form == "checkpoint":
        size = export_checkpoint(genome, Materialiser(basis), to, dtype=dtype)
        note(f"{size / 1e6:.1f} MB; loads with AutoModelForCausalLM.from_pretrained")
    elif form == "adapter":
        base = str(basis.base.checkpoint.path)
        made = export_adapter(genome, basis, to, rank=rank, base_name=base)
        error = f"relative error {made.relative_error:.2g}"
        note(f"{made.bytes / 1e6:.1f} MB, rank {made.rank}, {error}")
    else:
        export_mergekit(genome, basis, to)
        note(f"run it as {to / 'README.md'} says")
    return individual
