"""Two numbers per slot that tell whether rebuilt weights are the published ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from cqd_hub.genome.genome import Genome
from cqd_hub.genome.materialise import Materialiser
from cqd_hub.randomness import generator

TOLERANCE = 1e-5  # relative to the norm: fp32 sums in another order stay far below


def fingerprint(genome: Genome, materialiser: Materialiser) -> dict[str, list[float]]:
    """Slot name → [‖W‖, W·s] of an individual's fp32 weights, in float64.

    s is a vector of signs drawn per slot (seed 0, number of the slot, "fingerprint"), over the
    weights in row-major order.
    """
    result = {}
    for number, slot in enumerate(materialiser.basis.layout.slots):
        weight = materialiser.weight(genome, number, dtype=torch.float32)
        values = weight.reshape(-1).cpu().numpy().astype(np.float64)
        rng = generator(0, number, "fingerprint")
        signs = rng.integers(0, 2, values.size, dtype=np.int8) * 2 - 1
        norm = float(np.sqrt(values @ values))
        result[slot.name] = [norm, float(values @ signs)]
    return result


def differing(ours: Mapping[str, list[float]], theirs: Mapping[str, list[float]]) -> str | None:
    """The first slot in which two fingerprints differ beyond `TOLERANCE`, or None."""
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            return name
        (norm, dot), (other_norm, other_dot) = ours[name], theirs[name]
        bound = TOLERANCE * max(norm, other_norm)
        # Written so that NaN differs.
        if not (abs(norm - other_norm) <= bound and abs(dot - other_dot) <= bound):
            return name
    return None
