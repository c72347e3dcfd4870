"""Individuals as genomes: base + experts → basis; algebra; materialisation; export.

Needs torch, transformers, safetensors and numpy only. Start with `open_models` and `build_basis`.
Torch is imported by the first that needs it: genomes and layouts alone are numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cqd_hub.genome.basis import Basis, build_basis, refuse_twins
    from cqd_hub.genome.genome import Genome, combine
    from cqd_hub.genome.layout import Granularity, Layout
    from cqd_hub.genome.materialise import Materialiser
    from cqd_hub.genome.models.opening import open_models
    from cqd_hub.genome.operators import (
        crossover,
        crossover_weights,
        mutate_child,
        mutate_expert,
        mutate_gaussian,
        refuse_tails,
    )

_PLACES = {
    "basis": ("Basis", "build_basis", "refuse_twins"),
    "genome": ("Genome", "combine"),
    "layout": ("Granularity", "Layout"),
    "materialise": ("Materialiser",),
    "models.opening": ("open_models",),
    "operators": (
        "crossover",
        "crossover_weights",
        "mutate_child",
        "mutate_expert",
        "mutate_gaussian",
        "refuse_tails",
    ),
}

__all__ = [
    # Base and experts.
    "Basis",
    "build_basis",
    "open_models",
    "refuse_twins",
    # Individuals.
    "Genome",
    "Granularity",
    "Layout",
    "Materialiser",
    "combine",
    # Variation.
    "crossover",
    "crossover_weights",
    "mutate_child",
    "mutate_expert",
    "mutate_gaussian",
    "refuse_tails",
]


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
