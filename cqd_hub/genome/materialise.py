"""Genome to weights, written in place into the one resident model.

Always from the pristine base, never incrementally, so that nothing accumulates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from cqd_hub.errors import UserError
from cqd_hub.genome.basis import Basis
from cqd_hub.genome.finite import extremes, is_finite, overflow
from cqd_hub.genome.genome import Genome
from cqd_hub.genome.held import Key, Step, Taken, Weights, held
from cqd_hub.genome.layout import Slot
from cqd_hub.genome.merge.record import Merge
from cqd_hub.genome.operators import child_core
from cqd_hub.genome.scales import Scales
from cqd_hub.randomness import generator

if TYPE_CHECKING:
    from cqd_hub.genome.merge.store import MergeStore

_BLOCK = 1 << 20  # elements worked on at a time on a CPU: 4 MB of fp32 stay in its cache
_BLOCK_OF_OTHERS = 1 << 25  # on other devices, and of what is on its way to them
_ROWS_OF_OTHERS = 256  # of which the rows are a multiple, so that all blocks are aligned alike
_SPLITS = 4  # genomes whose split coefficients are kept: a merge goes from parent to parent by slot


def rows_at_a_time(shape: Sequence[int], device: str) -> int:
    """How many rows of a slot are worked on together on a kind of device."""
    if len(shape) == 1:
        return shape[0]
    if device == "cpu":
        return max(1, _BLOCK // shape[1])
    aligned = _BLOCK_OF_OTHERS // shape[1] // _ROWS_OF_OTHERS * _ROWS_OF_OTHERS
    return min(shape[0], max(_ROWS_OF_OTHERS, aligned))


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


@dataclass
class _Between:
    """What an individual has between a slot's factors: scales of some directions, or a core.

    Args:
        values: fp32, ``[directions]`` or ``[left's columns, right's rows]``.
        part: Which directions.
        on_left: Whether the left factor is scaled, for it is the smaller one.
    """

    values: torch.Tensor
    part: slice
    on_left: bool
    _right: torch.Tensor | None = field(default=None, init=False)

    def product(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two matrices to be multiplied, for some rows of the left factor."""
        if self._right is None:  # the first rows
            self._right = right[self.part]
            if self.values.ndim == 2:
                self._right = self.values.to(right) @ self._right
            elif not self.on_left:
                self._right = self._right * self.values.to(right)[:, None]
        left = left[:, self.part]
        return left * self.values.to(left) if self.on_left else left, self._right


class _Sum(NamedTuple):
    """What one slot of an individual is summed to, and from."""

    out: torch.Tensor
    half: bool
    shares: list[float]
    merged: list[tuple[float, torch.Tensor]]
    noise: list[tuple[float, Draws]]
    between: _Between | None


class Materialiser:
    """Rebuilds individuals of one basis on one device.

    Weights asked for in fp32 are summed in fp32 throughout. For bfloat16 weights, where the
    hardware multiplies it, what is added to the base is summed to bfloat16 and added in one
    rounding: its error is 2⁻⁹ of the task vector beside the 2⁻⁹ of W that rounding W costs in any
    case (a few thousandths more for task vectors of 5 % of W). Base, experts, unmutated
    crossovers and whatever weighs merges take the fp32 sums: merges too come back bit for bit.

    Args:
        basis: What the genomes' coefficients scale.
        device: Where individuals are made.
        weights: Where the pristine base and, once used, factors and full fine-tunes are kept: on
            the device, or in the ``"host"``'s memory, from where they are copied for every
            individual. It comes out the same, bit for bit.
        merges: Where the merges are that genomes weigh; merged tensors are read for every use.

    Raises:
        UserError: The base holds NaN or infinity.
    """

    def __init__(
        self,
        basis: Basis,
        *,
        device: torch.device | str = "cpu",
        weights: Weights = "device",
        merges: MergeStore | None = None,
    ) -> None:
        self.basis, self.device = basis, torch.device(device)
        self._merges = merges
        if merges is not None:
            merges.attach(self)
        self._held = held(self.device, weights)
        for index, slot in enumerate(basis.layout.slots):
            self._held.keep(Key("base", index), self._finite_base(slot))
        self._scales = Scales(basis)
        self._splits: dict[int, tuple[Genome, tuple[np.ndarray, np.ndarray]]] = {}
        self._scratch = torch.empty(0, device=self.device)

    @torch.no_grad()
    def write(self, genome: Genome, parameters: Mapping[str, torch.Tensor]) -> None:
        """Overwrite *parameters* (by slot name, any dtype, on this device) with the individual.

        Raises:
            UserError: Some weight is beyond float16's largest number. (Those of the other dtypes
                are beyond any weight.)
        """
        slots = self.basis.layout.slots
        kept = self._merges.holding(genome.merges) if self._merges is not None else nullcontext()
        with kept:
            outs = ((index, parameters[slot.name]) for index, slot in enumerate(slots))
            self._fill(self._held.along(self._steps(genome, outs)))
        seen = {
            slot.name: extremes(parameters[slot.name])
            for slot in slots
            if parameters[slot.name].dtype == torch.float16
        }
        if seen:  # asked once: a GPU stops for every answer
            finite = torch.stack([*seen.values()]).isfinite().all(1).tolist()
            if not all(finite):
                name = next(n for n, good in zip(seen, finite, strict=True) if not good)
                raise overflow(name, torch.float16, of=f"individual {genome.hash[:12]}")

    @torch.no_grad()
    def state(self, genome: Genome, *, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """The individual as new tensors, in *dtype* or in each base tensor's own; see `write`."""
        result = {
            slot.name: self._empty(index, dtype)
            for index, slot in enumerate(self.basis.layout.slots)
        }
        self.write(genome, result)
        return result

    @torch.no_grad()
    def weight(
        self, genome: Genome, slot: int, *, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """One tensor of the individual. What *dtype* cannot hold becomes infinity."""
        out = self._empty(slot, dtype)
        self._fill(map(self._held.take, self._steps(genome, [(slot, out)])))
        return out

    def base_weight(self, slot: int) -> torch.Tensor:
        """One of the base's own tensors, on the device, to be read only."""
        return self._held[Key("base", slot)].to(self.device)

    def release(self) -> None:
        """Let go of the factors and fine-tunes that are kept for the next individual."""
        self._held.forget_all_but("base")

    def base_dtype(self, slot: int) -> torch.dtype:
        """What the base's own tensor was saved in."""
        return self._held[Key("base", slot)].dtype

    def _empty(self, slot: int, dtype: torch.dtype | None) -> torch.Tensor:
        return torch.empty_like(self._held[Key("base", slot)], dtype=dtype, device=self.device)

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
        return weight

    def _steps(self, genome: Genome, outs: Iterable[tuple[int, torch.Tensor]]) -> Iterator[Step]:
        """Slots in blocks of rows, with all that they are summed from held."""
        table, own = self._split(genome)
        shared = table.tolist()
        for index, out in outs:
            sum_, sliced, whole = self._sum(genome, index, out, shared[index], own)
            for rows in self._blocks(out.shape):
                yield Step(rows, sliced, whole, sum_)

    def _sum(
        self,
        genome: Genome,
        index: int,
        out: torch.Tensor,
        shared: list[float],
        own: np.ndarray,
    ) -> tuple[_Sum, tuple[Key, ...], tuple[Key, ...]]:
        """W0 + Σ shared·τ + Σ weight·(merge - W0) + left @ right + noise, and what it takes."""
        noise = [
            (float(spread[index]), Draws(seed, index))
            for seed, spread in genome.noise.items()
            if spread[index]
        ]
        merged = [
            (float(w[index]), self._merged(merge, index))
            for merge, w in genome.merges.items()
            if w[index]
        ]
        half = out.dtype == torch.bfloat16 and not (noise or merged) and self._multiplies_bfloat16
        dtype = torch.bfloat16 if half else torch.float32
        between, factors = self._factors(genome, index, own, dtype)
        half = half and between is not None
        experts = [
            self._expert(index, expert, as_delta=half) for expert, t in enumerate(shared) if t != 0
        ]
        shares = [t for t in shared if t != 0]
        return (
            _Sum(out, half, shares, merged, noise, between),
            (Key("base", index), *experts, *factors[:1]),
            factors[1:],
        )

    def _fill(self, steps: Iterable[Taken]) -> None:
        """Sum what was taken, step by step."""
        for (rows, _, _, sum_), (base, *rest), whole in steps:
            product = None
            if sum_.between is not None:
                product = sum_.between.product(rest.pop(), *whole)
            out = sum_.out[rows]
            if sum_.half and product is not None:
                if self._held.streams:
                    rest = [_delta(weight, base) for weight in rest]
                _add_in_half(out, base, list(zip(sum_.shares, rest, strict=True)), product)
            else:
                terms = list(zip(sum_.shares, rest, strict=True))
                terms += [(w, merged[rows].to(self.device)) for w, merged in sum_.merged]
                self._add_exactly(out, base, terms, sum_.noise, product)

    def _add_exactly(
        self,
        out: torch.Tensor,
        base: torch.Tensor,
        whole: list[tuple[float, torch.Tensor]],
        noise: list[tuple[float, Draws]],
        product: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        """(1 - Σt)·W0 + Σ t·W_e is W0 + Σ t·τ_e, and exact in fp32 from stored weights."""
        work = out if out.dtype == torch.float32 else self._buffer(base)
        work.copy_(base)
        if whole:
            work.mul_(1.0 - sum(t for t, _ in whole))
        for t, weight in whole:
            work.add_(weight, alpha=t)
        for spread, draws in noise:
            work.add_(draws.take(work.shape).to(self.device), alpha=spread)
        if product is not None:
            work.addmm_(*product)
        if work.dtype != out.dtype:
            out.copy_(work)

    def _expert(self, index: int, expert: int, *, as_delta: bool) -> Key:
        """An expert's weights; or their difference from the base, unless those are streamed."""
        as_delta = as_delta and not self._held.streams
        key = Key("delta" if as_delta else "expert", index, expert)
        if key not in self._held:
            weight = self.basis.expert_weight(index, expert).to(self._held.at)
            if as_delta:
                weight = _delta(weight, self._held[Key("base", index)])
            self._held.keep(key, weight)
        return key

    def _merged(self, merge: Merge, index: int) -> torch.Tensor:
        if self._merges is None:
            raise ValueError("a genome that weighs merges needs the store that keeps them")
        return self._merges.tensor(merge, self.basis.layout.slots[index].name)

    def _factors(
        self, genome: Genome, index: int, own: np.ndarray, dtype: torch.dtype
    ) -> tuple[_Between | None, tuple[Key, ...]]:
        """What is between the factors of a slot, and those: left and right."""
        name = self.basis.layout.slots[index].name
        if name in genome.cores:
            keys = Key("frame's left", index, dtype), Key("frame's right", index, dtype)
            if keys[1] not in self._held:
                frame = self.basis.frame(name)
                self._keep_factors(keys, frame.left, frame.right.T)
            core = torch.from_numpy(child_core(genome, self.basis, index))
            return _Between(core, slice(None), on_left=False), keys
        scales = own[self._scales.stack[index]]
        used = np.flatnonzero(scales)
        if not len(used):
            return None, ()
        keys = Key("left", index, dtype), Key("right", index, dtype)
        if keys[1] not in self._held:
            factors = [f[name] for f in self.basis.factors if name in f]
            left, right = torch.cat([f.up for f in factors], 1), [f.down for f in factors]
            self._keep_factors(keys, left, torch.cat(right))
        part = slice(used[0], used[-1] + 1)
        rows, columns = self.basis.layout.slots[index].shape
        return _Between(torch.from_numpy(scales[part]), part, on_left=rows < columns), keys

    def _keep_factors(self, keys: tuple[Key, Key], left: torch.Tensor, right: torch.Tensor) -> None:
        dtype = keys[0].of
        assert isinstance(dtype, torch.dtype)
        if self.device.type != "cpu":  # where they are sliced and copied
            left = left.contiguous()
        self._held.keep(keys[0], left.to(self._held.at, dtype))
        self._held.keep(keys[1], right.contiguous().to(self._held.at, dtype))

    @cached_property
    def _multiplies_bfloat16(self) -> bool:
        return self.device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()

    def _blocks(self, shape: torch.Size) -> Iterator[slice]:
        step = rows_at_a_time(shape, self.device.type)
        for start in range(0, shape[0], step):
            yield slice(start, start + step)

    def _buffer(self, like: torch.Tensor) -> torch.Tensor:
        if self._scratch.numel() < like.numel():
            self._scratch = torch.empty(like.numel(), device=self.device)
        return self._scratch[: like.numel()].view(like.shape)


def _delta(weight: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    return (weight.float() - base.float()).bfloat16()


def _add_in_half(
    out: torch.Tensor,
    base: torch.Tensor,
    whole: list[tuple[float, torch.Tensor]],
    product: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """The same sum with everything beside the base in bfloat16."""
    delta = torch.addmm(whole[0][1], *product, beta=whole[0][0]) if whole else torch.mm(*product)
    for t, tau in whole[1:]:
        delta.add_(tau, alpha=t)
    torch.add(base, delta, out=out)
