"""Genome to weights, written in place into the one resident model.

Always from the pristine base, never incrementally, so that nothing accumulates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from cqd_hub.errors import UserError
from cqd_hub.genome.basis import Basis
from cqd_hub.genome.finite import extremes, is_finite, overflow
from cqd_hub.genome.genome import Genome
from cqd_hub.genome.layout import Slot
from cqd_hub.genome.merge.record import Merge
from cqd_hub.genome.operators import child_core
from cqd_hub.genome.scales import Scales
from cqd_hub.randomness import generator

if TYPE_CHECKING:
    from cqd_hub.genome.merge.store import MergeStore

_BLOCK = 1 << 20  # elements worked on at a time on a CPU: 4 MB of fp32 stay in its cache
_SPLITS = 4  # genomes whose split coefficients are kept: a merge goes from parent to parent by slot


def normal(seed: int, slot: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal fp32 draws of one Gaussian mutation in one slot, the same on any device."""
    return Draws(seed, slot).take(shape)


class Draws:
    """The draws of `normal`, some rows after the other: whole, they are as large as the slot."""

    def __init__(self, seed: int, slot: int) -> None:
        self._rng = generator(seed, slot, "gaussian")

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """The rows that follow those taken before."""
        return torch.from_numpy(self._rng.standard_normal(shape, dtype=np.float32))


class _Product(NamedTuple):
    """A low-rank term of one slot: left @ right."""

    left: torch.Tensor
    right: torch.Tensor


class Materialiser:
    """Rebuilds individuals of one basis on one device.

    Weights asked for in fp32 are summed in fp32 throughout. For bfloat16 weights, where the
    hardware multiplies it, what is added to the base is summed to bfloat16 and added in one
    rounding: its error is 2⁻⁹ of the task vector beside the 2⁻⁹ of W that rounding W costs in any
    case (a few thousandths more for task vectors of 5 % of W). Base, experts, unmutated
    crossovers and whatever weighs merges take the fp32 sums: merges too come back bit for bit.

    Args:
        basis: What the genomes' coefficients scale.
        device: Where the pristine base and, once used, factors and full fine-tunes are kept.
        merges: Where the merges are that genomes weigh; merged tensors are read for every use.

    Raises:
        UserError: The base holds NaN or infinity.
    """

    def __init__(
        self,
        basis: Basis,
        *,
        device: torch.device | str = "cpu",
        merges: MergeStore | None = None,
    ) -> None:
        self.basis, self.device = basis, torch.device(device)
        self._merges = merges
        if merges is not None:
            merges.attach(self)
        self._base = {slot.name: self._finite_base(slot) for slot in basis.base.slots}
        self._scales = Scales(basis)
        self._splits: dict[int, tuple[Genome, tuple[np.ndarray, np.ndarray]]] = {}
        self._experts: dict[tuple[int, int, bool], torch.Tensor] = {}
        self._stacks: dict[tuple[int, torch.dtype], _Product] = {}
        self._frames: dict[tuple[int, torch.dtype], _Product] = {}
        self._scratch = torch.empty(0, device=self.device)

    @torch.no_grad()
    def write(self, genome: Genome, parameters: Mapping[str, torch.Tensor]) -> None:
        """Overwrite *parameters* (by slot name, any dtype, on this device) with the individual.

        Raises:
            UserError: Some weight is beyond float16's largest number. (Those of the other dtypes
                are beyond any weight.)
        """
        shared, own = self._split(genome)
        held = self._merges.holding(genome.merges) if self._merges is not None else nullcontext()
        with held:
            seen: dict[str, torch.Tensor] = {}
            for index, slot in enumerate(self.basis.layout.slots):
                out = parameters[slot.name]
                self._write(out, genome, index, shared, own)
                if out.dtype == torch.float16:
                    seen[slot.name] = extremes(out)
        if seen:  # asked once: a GPU stops for every answer
            finite = torch.stack([*seen.values()]).isfinite().all(1).tolist()
            if not all(finite):
                name = next(n for n, good in zip(seen, finite, strict=True) if not good)
                raise overflow(name, torch.float16, of=f"individual {genome.hash[:12]}")

    @torch.no_grad()
    def state(self, genome: Genome, *, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """The individual as new tensors, in *dtype* or in each base tensor's own; see `write`."""
        names = (slot.name for slot in self.basis.layout.slots)
        result = {
            name: torch.empty_like(self._base[name], dtype=dtype or self._base[name].dtype)
            for name in names
        }
        self.write(genome, result)
        return result

    @torch.no_grad()
    def weight(
        self, genome: Genome, slot: int, *, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """One tensor of the individual. What *dtype* cannot hold becomes infinity."""
        out = torch.empty_like(self._base[self.basis.layout.slots[slot].name], dtype=dtype)
        self._write(out, genome, slot, *self._split(genome))
        return out

    def base_weight(self, slot: int) -> torch.Tensor:
        """One of the base's own tensors, to be read only."""
        return self._base[self.basis.layout.slots[slot].name]

    def release(self) -> None:
        """Let go of the factors and fine-tunes that are kept for the next individual."""
        for kept in (self._experts, self._stacks, self._frames):
            kept.clear()

    def base_dtype(self, slot: int) -> torch.dtype:
        """What the base's own tensor was saved in."""
        return self._base[self.basis.layout.slots[slot].name].dtype

    def _split(self, genome: Genome) -> tuple[np.ndarray, np.ndarray]:
        if genome.basis != self.basis.hash:
            raise ValueError(f"genome of basis {genome.basis[:12]}, not {self.basis.hash[:12]}")
        known = self._splits.get(id(genome))  # it is held, so nothing else has its id
        if known is None:
            known = genome, self._scales.split(genome)
            while len(self._splits) >= _SPLITS:
                self._splits.pop(next(iter(self._splits)), None)
            self._splits[id(genome)] = known
        return known[1]

    def _finite_base(self, slot: Slot) -> torch.Tensor:
        base = self.basis.base
        weight = base.weight(slot)
        if not is_finite(weight):
            raise UserError(
                f"{slot.name} holds NaN or infinity",
                where=str(base.checkpoint.path),
                remedy="save or download the base again",
            )
        return weight.to(self.device)

    def _write(
        self,
        out: torch.Tensor,
        genome: Genome,
        index: int,
        shared: np.ndarray,
        own: np.ndarray,
    ) -> None:
        """Write W0 + Σ shared·τ + Σ weight·(merge - W0) + left @ right + noise into *out*."""
        slot = self.basis.layout.slots[index]
        noise = [
            (float(spread[index]), Draws(seed, index))
            for seed, spread in genome.noise.items()
            if spread[index]
        ]
        merges = [(float(w[index]), merge) for merge, w in genome.merges.items() if w[index]]
        half = out.dtype == torch.bfloat16 and not (noise or merges) and self._multiplies_bfloat16
        product = self._product(genome, index, own, torch.bfloat16 if half else torch.float32)
        half = half and product is not None
        whole = [
            (float(t), self._expert(index, expert, as_delta=half))
            for expert, t in enumerate(shared[index])
            if t != 0
        ]
        whole += [(weight, self._merged(merge, index)) for weight, merge in merges]
        base = self._base[slot.name]
        for rows in self._blocks(base):
            if half and product is not None:
                _add_in_half(out[rows], base[rows], whole, product, rows)
            else:
                self._add_exactly(out[rows], base[rows], whole, noise, product, rows)

    def _add_exactly(
        self,
        out: torch.Tensor,
        base: torch.Tensor,
        whole: list[tuple[float, torch.Tensor]],
        noise: list[tuple[float, Draws]],
        product: _Product | None,
        rows: slice,
    ) -> None:
        """(1 - Σt)·W0 + Σ t·W_e is W0 + Σ t·τ_e, and exact in fp32 from stored weights."""
        work = out if out.dtype == torch.float32 else self._buffer(base)
        work.copy_(base)
        if whole:
            work.mul_(1.0 - sum(t for t, _ in whole))
        for t, weight in whole:
            work.add_(weight[rows], alpha=t)
        for spread, draws in noise:
            work.add_(draws.take(work.shape).to(self.device), alpha=spread)
        if product is not None:
            work.addmm_(product.left[rows], product.right)
        if work.dtype != out.dtype:
            out.copy_(work)

    def _expert(self, index: int, expert: int, *, as_delta: bool) -> torch.Tensor:
        key = (index, expert, as_delta)
        if key not in self._experts:
            weight = self.basis.expert_weight(index, expert).to(self.device)
            if as_delta:
                base = self._base[self.basis.layout.slots[index].name]
                weight = (weight.float() - base.float()).bfloat16()
            self._experts[key] = weight
        return self._experts[key]

    def _merged(self, merge: Merge, index: int) -> torch.Tensor:
        if self._merges is None:
            raise ValueError("a genome that weighs merges needs the store that keeps them")
        return self._merges.tensor(merge, self.basis.layout.slots[index].name).to(self.device)

    def _product(
        self, genome: Genome, index: int, own: np.ndarray, dtype: torch.dtype
    ) -> _Product | None:
        name = self.basis.layout.slots[index].name
        if name in genome.cores:
            if (index, dtype) not in self._frames:
                frame = self.basis.frame(name)
                self._frames[index, dtype] = self._moved(frame.left, frame.right.T, dtype)
            left, right = self._frames[index, dtype]
            core = torch.from_numpy(child_core(genome, self.basis, index)).to(right)
            return _Product(left, core @ right)
        scales = own[self._scales.stack[index]]
        used = np.flatnonzero(scales)
        if not len(used):
            return None
        if (index, dtype) not in self._stacks:
            factors = [f[name] for f in self.basis.factors if name in f]
            self._stacks[index, dtype] = self._moved(
                torch.cat([f.up for f in factors], 1), torch.cat([f.down for f in factors]), dtype
            )
        left, right = self._stacks[index, dtype]
        part = slice(used[0], used[-1] + 1)
        left, right = left[:, part], right[part]
        step = torch.from_numpy(scales[part]).to(right)
        if len(left) < right.shape[1]:
            return _Product(left * step, right)
        return _Product(left, right * step[:, None])

    def _moved(self, left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> _Product:
        return _Product(left.to(self.device, dtype), right.contiguous().to(self.device, dtype))

    @cached_property
    def _multiplies_bfloat16(self) -> bool:
        return self.device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()

    def _blocks(self, weight: torch.Tensor) -> Iterator[slice]:
        rows = len(weight)
        step = rows
        if self.device.type == "cpu" and weight.ndim > 1:
            step = max(1, _BLOCK // weight.shape[1])
        for start in range(0, rows, step):
            yield slice(start, start + step)

    def _buffer(self, like: torch.Tensor) -> torch.Tensor:
        if self._scratch.numel() < like.numel():
            self._scratch = torch.empty(like.numel(), device=self.device)
        return self._scratch[: like.numel()].view(like.shape)


def _add_in_half(
    out: torch.Tensor,
    base: torch.Tensor,
    whole: list[tuple[float, torch.Tensor]],
    product: _Product,
    rows: slice,
) -> None:
    """The same sum with everything beside the base in bfloat16."""
    left, right = product.left[rows], product.right
    if not whole:
        delta = left @ right
    else:
        delta = torch.addmm(whole[0][1][rows], left, right, beta=whole[0][0])
    for t, tau in whole[1:]:
        delta.add_(tau[rows], alpha=t)
    torch.add(base, delta, out=out)
