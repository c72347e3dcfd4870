"""What an individual adds to the base, slot by slot: exact factors where there are any."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from cqd_hub.genome.basis import Basis
from cqd_hub.genome.experts import LowRank
from cqd_hub.genome.factor import factor
from cqd_hub.genome.genome import Genome
from cqd_hub.genome.materialise import normal
from cqd_hub.genome.operators import child_core
from cqd_hub.genome.scales import Scales


class Deltas:
    """The individual minus the base, optionally minus a weighted sum of whole experts as well.

    Args:
        beside_experts: Take out Σ_e ``weights[slot, e]``·τ_e, leaving only what no weighted sum of
            experts can express.

    Attributes:
        weights: ``[slots, experts]`` of the experts taken out; zeros unless asked for.
    """

    def __init__(self, genome: Genome, basis: Basis, *, beside_experts: bool = False) -> None:
        self.genome, self.basis = genome, basis
        scales = Scales(
            basis,
            whole="all" if beside_experts else "none",
            centred=beside_experts,
        )
        shared, self._own = scales.split(genome)
        self._stack = scales.stack
        self.weights = shared if beside_experts else np.zeros_like(shared)
        self._shared = np.zeros_like(shared) if beside_experts else shared

    def matrices(self) -> Iterator[tuple[int, LowRank]]:
        """Yield every matrix slot that differs, with exact factors.

        A delta that is dense, or of more rank than the matrix has, comes as itself times the
        identity: no larger than any other exact pair, and nothing has to be decomposed.
        """
        for index, slot in enumerate(self.basis.layout.slots):
            if not slot.is_matrix:
                continue
            product, dense = self._low_rank(index), self._dense(index)
            if product is not None and (
                dense is not None or product.up.shape[1] >= min(slot.shape)
            ):
                whole = product.up @ product.down
                product, dense = None, whole if dense is None else dense + whole
            if dense is not None:
                rows, columns = dense.shape
                tall = rows >= columns
                yield (
                    index,
                    LowRank(*(dense, torch.eye(columns)) if tall else (torch.eye(rows), dense)),
                )
            elif product is not None:
                yield index, product

    def vectors(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield every norm or bias that differs, with its difference."""
        for index, slot in enumerate(self.basis.layout.slots):
            if not slot.is_matrix and (dense := self._dense(index)) is not None:
                yield index, dense

    def _low_rank(self, index: int) -> LowRank | None:
        name = self.basis.layout.slots[index].name
        if name in self.genome.cores:
            frame = self.basis.frame(name)
            core = torch.from_numpy(child_core(self.genome, self.basis, index)).float()
            return LowRank(frame.left, core @ frame.right.T)
        scales = self._own[self._stack[index]]
        used = torch.from_numpy(np.flatnonzero(scales))
        if not len(used):
            return None
        factors = [f[name] for f in self.basis.factors if name in f]
        up = torch.cat([f.up for f in factors], 1)[:, used] * torch.from_numpy(scales)[used]
        return LowRank(up, torch.cat([f.down for f in factors])[used])

    def _dense(self, index: int) -> torch.Tensor | None:
        parts = []
        slot = self.basis.layout.slots[index]
        for number, weight in enumerate(self._shared[index]):
            if weight and self.basis.is_dense(index, number):
                delta = self.basis.experts[number].task_vector(slot)
                assert isinstance(delta, torch.Tensor)  # dense
                parts.append(delta * float(weight))
        for seed, spread in self.genome.noise.items():
            if spread[index]:
                parts.append(normal(seed, index, slot.shape) * float(spread[index]))
        return torch.stack(parts).sum(0) if parts else None


def truncated(product: LowRank, rank: int) -> LowRank:
    """The best approximation of at most *rank*; *product* itself if it has no more."""
    inner = product.up.shape[1]
    if inner <= rank:
        return product
    exact = inner < min(product.up.shape[0], product.down.shape[1])
    return LowRank(*factor(product if exact else product.up @ product.down, rank)[0])
