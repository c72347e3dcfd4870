"""Who is in the batch: every individual's coefficients in tables, gathered row by row."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from cqd_hub.genome import Basis, Genome
from cqd_hub.genome.operators import child_core
from cqd_hub.genome.scales import Scales

_FIRST = 16  # individuals there is room for at first


class Part(NamedTuple):
    """Where one slot's coefficients lie in the tables.

    Args:
        slot: Its number in the layout.
        start: First column among the scales.
        stop: Behind the last one.
        vector: First column among the vectors, or -1.
    """

    slot: int
    start: int
    stop: int
    vector: int = -1


def expressible(genome: Genome) -> bool:
    """Whether an individual is scales, tails and cores of the shared factors alone."""
    return not genome.noise and not genome.merges


class People:
    """Tables of the individuals in flight, and the rows of the current pass.

    Args:
        basis: What genomes' coefficients scale.
        slots: Numbers of the slots that some individual may change.
        device: Where the tables are.
        dtype: Of the model.

    Attributes:
        active: Whether modules apply individuals; if not, the model is as it is.
        scales: The split of coefficients that the tables hold.
        parts: Slot number → where its coefficients lie.
    """

    def __init__(
        self, basis: Basis, slots: Sequence[int], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._basis, self._device, self._dtype = basis, device, dtype
        self.active = False
        self.scales = Scales(basis, whole="none")
        layout = basis.layout
        self.parts: dict[int, Part] = {}
        columns: list[np.ndarray] = []
        scales = vectors = 0
        for slot in slots:
            stack = self.scales.stack[slot]
            vector = -1 if layout.slots[slot].is_matrix else vectors
            self.parts[slot] = Part(slot, scales, scales + len(stack), vector)
            vectors += 0 if vector < 0 else layout.slots[slot].shape[0]
            scales += len(stack)
            columns.append(stack)
        self._columns = np.concatenate(columns) if columns else np.zeros(0, np.int64)
        self._deltas = {slot: self._vector(slot) for slot in slots if self.parts[slot].vector >= 0}
        self._tables = {
            "scales": torch.zeros(_FIRST, scales, device=device, dtype=dtype),
            "shared": torch.zeros(
                _FIRST, len(layout.slots), len(layout.experts), device=device, dtype=dtype
            ),
            "vectors": torch.zeros(_FIRST, vectors, device=device, dtype=dtype),
        }
        self._cores: dict[int, torch.Tensor] = {}
        self._cored: dict[int, set[Hashable]] = {}
        self._places: dict[Hashable, int] = {}
        self._genomes: dict[Hashable, Genome] = {}  # so that no key, an id, is another's
        self._free = list(range(_FIRST))
        self._last: tuple[Sequence[Hashable], Sequence[Hashable] | None] | None = None
        self._index = torch.zeros(0, dtype=torch.long, device=device)
        self._head: torch.Tensor | None = None
        self._rows: dict[str, torch.Tensor] = {}
        self._views: dict[Part, torch.Tensor] = {}  # of the rows' scales: asked for at every pass

    def add(self, key: Hashable, genome: Genome) -> None:
        """Write an individual into the tables, unless it is there; it is held until removed.

        Raises:
            ValueError: It belongs to another basis.
        """
        if key in self._places:
            return
        layout = self._basis.layout
        if genome.basis != self._basis.hash or genome.coefficients.shape != (layout.size,):
            raise ValueError(f"genome of basis {genome.basis[:12]}, not {self._basis.hash[:12]}")
        shared, own = self.scales.split(genome)
        own = own[self._columns]
        numbers = {slot.name: number for number, slot in enumerate(layout.slots)}
        cored = [numbers[name] for name in genome.cores]
        for slot in cored:
            part = self.parts[slot]
            own[part.start : part.stop] = 0.0
        if not self._free:
            self._grow()
        place = self._free.pop()
        self._places[key], self._genomes[key] = place, genome
        self._tables["scales"][place] = self._tensor(own)
        self._tables["shared"][place] = self._tensor(shared)
        for slot, (base, deltas) in self._deltas.items():
            start = self.parts[slot].vector
            whole = base + torch.from_numpy(shared[slot]).float() @ deltas
            self._tables["vectors"][place, start : start + len(base)] = whole.to(
                self._device, self._dtype
            )
        for slot in cored:
            core = self._tensor(child_core(genome, self._basis, slot))
            if slot not in self._cores:
                self._cores[slot] = core.new_zeros(len(self._tables["scales"]), *core.shape)
            self._cores[slot][place] = core
            self._cored.setdefault(slot, set()).add(key)
        self._last = None

    def remove(self, key: Hashable) -> None:
        """Give an individual's place to others."""
        place = self._places.pop(key)
        del self._genomes[key]
        self._free.append(place)
        for slot, keys in self._cored.items():
            if key in keys:
                keys.remove(key)
                self._cores[slot][place] = 0.0
        self._last = None

    def present(self) -> list[Hashable]:
        """Who is in the tables."""
        return list(self._places)

    def assign(self, rows: Sequence[Hashable], head: Sequence[Hashable] | None) -> None:
        """Say whose the rows of the next pass are, and the tokens that its head sees."""
        if not self.active or self._last == (rows, head):
            return
        self._index = self._numbers(rows)
        self._rows = {name: table[self._index] for name, table in self._tables.items()}
        self._views = {}
        self._head = None if head is None else self._numbers(head)
        self._last = (rows, head)

    # What modules ask: each result has a second dimension for the tokens of a row.

    def own(self, part: Part, *, head: bool) -> torch.Tensor:
        """``[rows, 1, rank]`` scales, or ``[1, tokens, rank]`` of the head's tokens."""
        if head and self._head is not None:
            return self._tables["scales"][:, part.start : part.stop][self._head][None]
        view = self._views.get(part)
        if view is None:
            view = self._rows["scales"][:, None, part.start : part.stop].contiguous()
            self._views[part] = view
        return view

    def tail(self, part: Part, expert: int, *, head: bool) -> torch.Tensor:
        """``[rows, 1, 1]`` scales of one expert's whole task vector."""
        if head and self._head is not None:
            return self._tables["shared"][:, part.slot, expert][self._head][None, :, None]
        return self._rows["shared"][:, part.slot, expert][:, None, None]

    def vector(self, part: Part, size: int, *, head: bool) -> torch.Tensor:
        """``[rows, 1, size]`` norm weights or biases."""
        span = slice(part.vector, part.vector + size)
        if head and self._head is not None:
            return self._tables["vectors"][:, span][self._head][None]
        return self._rows["vectors"][:, None, span]

    def core(self, part: Part, *, head: bool) -> torch.Tensor | None:
        """``[rows, R_b, R_a]`` cores, or None where nobody in the batch has one."""
        if not self._cored.get(part.slot):
            return None
        index = self._head if head and self._head is not None else self._index
        return self._cores[part.slot][index]

    def _vector(self, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A vector of the base ``[n]`` and every expert's difference from it ``[experts, n]``."""
        layout = self._basis.layout
        base = self._basis.base.weight(layout.slots[slot]).float()
        deltas = torch.zeros(len(layout.experts), len(base))
        for where, expert in self.scales.dense:
            if where == slot:
                deltas[expert] = self._basis.expert_weight(slot, expert).float() - base
        return base, deltas

    def _numbers(self, keys: Sequence[Hashable]) -> torch.Tensor:
        return torch.tensor([self._places[key] for key in keys], device=self._device)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device, self._dtype)

    def _grow(self) -> None:
        size = len(self._tables["scales"])
        self._free = list(range(size, 2 * size))
        self._tables = {name: _doubled(table) for name, table in self._tables.items()}
        self._cores = {slot: _doubled(table) for slot, table in self._cores.items()}


def _doubled(table: torch.Tensor) -> torch.Tensor:
    return torch.cat([table, torch.zeros_like(table)])
