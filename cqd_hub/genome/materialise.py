"""Genome to weights, written in place into the one resident model.

Always from the pristine base, never incrementally, so that nothing accumulates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from cqd_hub.genome.basis import Basis
from cqd_hub.genome.experts import FullExpert
from cqd_hub.genome.genome import Genome
from cqd_hub.genome.layout import Segment
from cqd_hub.randomness import generator


def normal(seed: int, slot: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal fp32 draws of one Gaussian mutation in one slot, the same on any device."""
    rng = generator(seed, slot, "gaussian")
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


class _Stack(NamedTuple):
    """All experts' factors of one slot side by side, and where their coefficients lie."""

    up: torch.Tensor
    down: torch.Tensor
    scale_index: torch.Tensor
    tail_index: torch.Tensor  # the tail coefficient subtracted from each scale
    tail_mask: torch.Tensor


class Materialiser:
    """Rebuilds individuals of one basis on one device.

    Args:
        basis: What the genomes' coefficients scale.
        device: Where the pristine base, factors and tails are kept.
    """

    def __init__(self, basis: Basis, *, device: torch.device | str = "cpu") -> None:
        self.basis, self.device = basis, torch.device(device)
        checkpoint = basis.base.checkpoint
        self._base = {name: checkpoint.tensor(name, self.device) for name in basis.base.names}
        self._stacks = {
            index: self._stack(index)
            for index in range(len(basis.layout.slots))
            if any(basis.layout.ranks[index])
        }
        # (1 - Σt)·W0 + Σ t·W_e is W0 + Σ t·τ_e, exact in fp32 from half-precision experts.
        self._tails = {
            (index, segment.expert): self._expert_weight(segment)
            for index, row in enumerate(basis.layout.segments)
            for segment in row
            if segment.tail
        }

    def _expert_weight(self, segment: Segment) -> torch.Tensor:
        expert = self.basis.experts[segment.expert]
        assert isinstance(expert, FullExpert)
        return expert.weight(self.basis.layout.slots[segment.slot].name).to(self.device)

    def _stack(self, index: int) -> _Stack:
        name = self.basis.layout.slots[index].name
        segments = [s for s in self.basis.layout.segments[index] if s.rank]
        factors = [self.basis.factors[s.expert][name] for s in segments]
        scale = [np.arange(s.start, s.start + s.rank) for s in segments]
        tail = [np.full(s.rank, s.start + s.rank if s.tail else 0) for s in segments]
        mask = [np.full(s.rank, s.tail, dtype=np.float32) for s in segments]
        return _Stack(
            torch.cat([f.up for f in factors], 1).to(self.device),
            torch.cat([f.down for f in factors], 0).to(self.device),
            *(
                torch.from_numpy(np.concatenate(part)).to(self.device)
                for part in (scale, tail, mask)
            ),
        )

    def weight(self, genome: Genome, slot: int) -> torch.Tensor:
        """One tensor of the individual, fp32."""
        return self._weight(self._coefficients(genome), genome, slot)

    def _coefficients(self, genome: Genome) -> torch.Tensor:
        if genome.basis != self.basis.hash:
            raise ValueError(f"genome of basis {genome.basis[:12]}, not {self.basis.hash[:12]}")
        return torch.from_numpy(genome.coefficients).to(self.device)

    def _weight(self, coefficients: torch.Tensor, genome: Genome, index: int) -> torch.Tensor:
        layout = self.basis.layout
        slot = layout.slots[index]
        result = self._base[slot.name].float()
        tails = [
            (float(genome.coefficients[segment.stop - 1]), segment.expert)
            for segment in layout.segments[index]
            if segment.tail and genome.coefficients[segment.stop - 1] != 0
        ]
        if tails:
            result = result * (1.0 - sum(t for t, _ in tails))
            for t, expert in tails:
                result.add_(self._tails[index, expert].float(), alpha=t)
        if stack := self._stacks.get(index):
            scales = (
                coefficients[stack.scale_index] - coefficients[stack.tail_index] * stack.tail_mask
            )
            if scales.any():
                result = torch.addmm(result, stack.up * scales, stack.down)
        if slot.name in genome.cores:
            frame = self.basis.frame(slot.name)
            core = torch.from_numpy(genome.cores[slot.name])
            result = result + (frame.left @ core @ frame.right.T).to(self.device)
        for seed, spread in genome.noise.items():
            if spread[index]:
                draws = normal(seed, index, slot.shape).to(self.device)
                result = result + draws * float(spread[index])
        return result

    @torch.no_grad()
    def write(self, genome: Genome, parameters: Mapping[str, torch.Tensor]) -> None:
        """Overwrite *parameters* (by slot name, any dtype, on this device) with the individual."""
        coefficients = self._coefficients(genome)
        for index, slot in enumerate(self.basis.layout.slots):
            parameters[slot.name].copy_(self._weight(coefficients, genome, index))

    def state(self, genome: Genome, *, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """The individual as new tensors, in *dtype* or in each base tensor's own."""
        coefficients = self._coefficients(genome)
        return {
            slot.name: self._weight(coefficients, genome, index).to(
                dtype or self._base[slot.name].dtype
            )
            for index, slot in enumerate(self.basis.layout.slots)
        }
