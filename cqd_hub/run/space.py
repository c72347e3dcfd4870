"""Whether the disk holds what a run will write, asked before it begins."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cqd_hub.errors import UserError
from cqd_hub.files import size_text
from cqd_hub.genome import Genome, Layout
from cqd_hub.run.lineup import Lineup

_MEASUREMENT = 400  # bytes of a journal row with a short answer, indices included
_REPORT = 8 << 20


def check_space(folder: Path, lineup: Lineup, samples: int, present: int) -> None:
    """Raise a `UserError` if what a run still has to write would not fit on its disk.

    *present* individuals are written already, each answers *samples* questions. An estimate:
    genomes of experts' size, short answers, figures, merged children up to their budget. Running
    out later loses nothing.
    """
    genome = len(Genome.of_base(lineup.basis.hash, lineup.basis.layout).to_bytes())
    mutation = lineup.recipe.variation.mutation
    if mutation.kind == "svd" and mutation.of == "child":
        genome += core_bytes(lineup.basis.layout)
    missing = max(lineup.recipe.search.children + len(lineup.recipe.experts) - present, 0)
    needed = missing * (genome + samples * _MEASUREMENT) + _REPORT
    if lineup.merges is not None:
        there = sum(path.stat().st_size for path in (folder / "merges").glob("*.safetensors"))
        budget = max(lineup.recipe.genome.disk_bytes, lineup.merges.size) - there
        needed += max(min(budget, missing * lineup.merges.size), 0)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the run needs about {size_text(needed)}, the disk has {size_text(free)} free",
            where=str(folder),
            remedy="free some space or choose another --out",
        )


def asked(manifest: Mapping[str, Any]) -> int:
    """How many questions an individual answers while it is searched for."""
    return sum(task["samples"]["optimisation"] for task in manifest["tasks"].values())


def core_bytes(layout: Layout) -> int:
    """Bytes of the cores that SVD mutation of the child's own task vector needs."""
    return sum(
        4 * min(sum(ranks), slot.shape[0]) * min(sum(ranks), slot.shape[1])
        for slot, ranks in zip(layout.slots, layout.ranks, strict=True)
        if slot.is_matrix
    )
