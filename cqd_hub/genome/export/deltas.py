"""What an individual adds to the base, slot by slot: exact factors where there are any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from cqd_hub.genome.basis import Basis
from cqd_hub.genome.genome import Genome
from cqd_hub.genome.materialise import Draws
from cqd_hub.genome.merge.record import Merge
from cqd_hub.genome.models.experts import LowRank, blocks
from cqd_hub.genome.operators import child_core
from cqd_hub.genome.scales import Scales

if TYPE_CHECKING:
    from cqd_hub.genome.merge.store import MergeStore


def expert_shares(genome: Genome, basis: Basis) -> np.ndarray:
    """``[slots, experts]``: the multiple of each whole expert that is nearest to the individual."""
    return Scales(basis, whole="all", centred=True).split(genome)[0]


class Deltas:
    """The individual minus the base, optionally minus a weighted sum of whole experts as well.

    Args:
        merges: Where the merges are that the genome weighs.
        without: ``[slots, experts]``: take out Σ_e ``without[slot, e]``·τ_e. Near `expert_shares`
            little is left; in slots with a core it must be 0.
    """

    def __init__(
        self,
        genome: Genome,
        basis: Basis,
        *,
        merges: MergeStore | None = None,
        without: np.ndarray | None = None,
    ) -> None:
        self.genome, self.basis, self._merges = genome, basis, merges
        apart = without is not None
        scales = Scales(basis, whole="all" if apart else "none", centred=apart)
        shared, self._own = scales.split(genome)
        self._stack = scales.stack
        self._shared = shared if without is None else shared - without
        if apart:
            self._scale_factors()

    def _scale_factors(self) -> None:
        """Put what is left of experts given as factors on their own directions."""
        for row in self.basis.layout.segments:
            for place in row:
                left = self._shared[place.slot, place.expert]
                if left and not self.basis.is_dense(place.slot, place.expert):
                    self._own[place.start : place.start + place.rank] += np.float32(left)
                    self._shared[place.slot, place.expert] = 0.0

    def delta(self, index: int) -> torch.Tensor | None:
        """One slot's difference in fp32, or None if there is none."""
        product, dense = self._low_rank(index), self._dense(index)
        if product is None:
            return dense
        whole = product.up @ product.down
        return whole if dense is None else dense.add_(whole)

    def differing(self) -> list[int]:
        """Slots that differ (or may, by an amount that rounds to nothing)."""
        return [
            index
            for index, slot in enumerate(self.basis.layout.slots)
            if slot.name in self.genome.cores
            or self._own[self._stack[index]].any()
            or self._shared[index].any()
            or any(spread[index] for spread in self.genome.noise.values())
            or any(weights[index] for weights in self.genome.merges.values())
        ]

    def matrix(self, index: int) -> LowRank | None:
        """One matrix slot's difference as exact factors, or None if there is none.

        A delta that is dense, or of more rank than the matrix has, comes as itself times the
        identity: no larger than any other exact pair, and nothing has to be decomposed.
        """
        product, dense = self._low_rank(index), self._dense(index)
        shape = self.basis.layout.slots[index].shape
        if product is not None and (dense is not None or product.up.shape[1] >= min(shape)):
            whole = product.up @ product.down
            product, dense = None, whole if dense is None else dense + whole
        if dense is None:
            return product
        return as_product(dense)

    def matrices(self) -> Iterator[tuple[int, LowRank]]:
        """Yield every matrix slot that differs; see `matrix`."""
        for index, slot in enumerate(self.basis.layout.slots):
            if slot.is_matrix and (product := self.matrix(index)) is not None:
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
        total: torch.Tensor | None = None
        slot = self.basis.layout.slots[index]
        for number, weight in enumerate(self._shared[index]):
            if weight and self.basis.is_dense(index, number):
                delta = self.basis.experts[number].task_vector(slot)
                assert isinstance(delta, torch.Tensor)  # dense
                total = _plus(total, delta * float(weight))
        for seed, spread in self.genome.noise.items():
            if spread[index]:
                total = torch.zeros(slot.shape) if total is None else total
                draws = Draws(seed, index)
                for rows in blocks(slot.shape, 1 << 20):
                    part = total[rows]
                    part.add_(draws.take(part.shape).mul_(float(spread[index])))
        for merge, weights in self.genome.merges.items():
            if weights[index]:
                total = _plus(total, self._merged(merge, index).mul_(float(weights[index])))
        return total

    def _merged(self, merge: Merge, index: int) -> torch.Tensor:
        """A merge's difference from the base."""
        if self._merges is None:
            raise ValueError("a genome that weighs merges needs the store that keeps them")
        slot = self.basis.layout.slots[index]
        return self._merges.tensor(merge, slot.name).float() - self.basis.base.weight(slot).float()


def _plus(total: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    return part if total is None else total.add_(part)


def as_product(dense: torch.Tensor) -> LowRank:
    """A matrix as itself times the identity."""
    rows, columns = dense.shape
    if rows >= columns:
        return LowRank(dense, torch.eye(columns))
    return LowRank(torch.eye(rows), dense)
