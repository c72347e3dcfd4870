"""Individuals as genomes: base + experts → basis; algebra; materialisation; export.

Needs torch, transformers, safetensors and numpy only. Start with `open_models` and `build_basis`.
"""

from cqd_hub.genome.basis import Basis, build_basis
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

__all__ = [
    # Base and experts.
    "Basis",
    "build_basis",
    "open_models",
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
