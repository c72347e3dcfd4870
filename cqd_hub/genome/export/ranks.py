"""How many singular directions each module of an adapter needs for a wanted error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from cqd_hub.genome.factor import factor
from cqd_hub.genome.models.experts import LowRank


class Spectrum(NamedTuple):
    """One module: its singular values, descending, and the numbers that each direction stores."""

    values: np.ndarray
    cost: int


def decomposed(product: LowRank) -> LowRank:
    """The same product as singular directions, strongest first, the values in ``up``."""
    inner = product.up.shape[1]
    if not inner:
        return product
    exact = inner < min(product.up.shape[0], product.down.shape[1])
    return LowRank(*factor(product if exact else product.up @ product.down, "full")[0])


def spectrum(product: LowRank) -> Spectrum:
    """What `smallest_ranks` needs to know of a decomposed product."""
    up, down = product
    values = torch.linalg.vector_norm(up.double(), dim=0).numpy()
    return Spectrum(values, up.shape[0] + down.shape[1])


def smallest_ranks(spectra: Sequence[Spectrum], budget: float) -> list[int]:
    """Ranks that leave out at most *budget* (a sum of squared singular values) in all.

    Directions go in the order of what they hold per number stored, the least first: no other choice
    with that loss stores much less.
    """
    energy = np.concatenate([s.values**2 for s in spectra])
    owner = np.repeat(np.arange(len(spectra)), [len(s.values) for s in spectra])
    density = energy / np.array([s.cost for s in spectra])[owner]
    order = np.lexsort((-np.arange(len(density)), density))  # ties: a module's last one first
    dropped = order[: int(np.searchsorted(np.cumsum(energy[order]), budget, side="right"))]
    gone = np.bincount(owner[dropped], minlength=len(spectra))
    return [len(s.values) - int(n) for s, n in zip(spectra, gone, strict=True)]


def smallest_uniform(
    spectra: Sequence[Spectrum], budget: float, allowed: Iterable[int]
) -> int | None:
    """The smallest of the *allowed* ranks that loses at most *budget* in every module together."""
    for rank in sorted(allowed):
        if sum(float((s.values[rank:] ** 2).sum()) for s in spectra) <= budget:
            return rank
    return None


def truncated(product: LowRank, rank: int) -> LowRank:
    """The best approximation of at most *rank*; *product* itself if it has no more."""
    inner = product.up.shape[1]
    if inner <= rank:
        return product
    exact = inner < min(product.up.shape[0], product.down.shape[1])
    return LowRank(*factor(product if exact else product.up @ product.down, rank)[0])


def padded(product: LowRank, rank: int) -> LowRank:
    """The same product with directions of zeros up to *rank*."""
    missing = rank - product.up.shape[1]
    return LowRank(
        torch.nn.functional.pad(product.up, (0, missing)),
        torch.nn.functional.pad(product.down, (0, 0, 0, missing)),
    )
