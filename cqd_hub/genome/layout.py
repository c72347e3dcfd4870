"""Which coefficient of a genome scales what: numpy only."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

Granularity = Literal["model", "layer", "matrix"]
Kind = Literal["matrix", "transposed", "embedding", "convolution", "vector"]


@dataclass(frozen=True)
class Slot:
    """One matrix or vector of the base: a stored tensor, or one matrix of a stacked tensor.

    Args:
        name: The tensor's name as the base stores it; ``tensor[3]`` in a stack.
        shape: As worked on: ``[rows, columns]`` or ``[n]``. A convolution's kernel is flattened
            into the columns.
        kind: ``"transposed"`` is stored [in, out] (Conv1D); all but ``"vector"`` are matrices.
        tensor: The stored tensor's name.
        index: Which matrix of the stack (a mixture's experts), or None.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    tensor: str
    index: int | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether it has singular directions."""
        return self.kind != "vector"


class Segment(NamedTuple):
    """One expert's coefficients in one slot: ``rank`` scales g, then the tail's scale t if any.

    A vector slot (norm, bias) is the case rank 0 with a tail: one scalar per expert.
    """

    slot: int
    expert: int
    start: int
    rank: int
    tail: bool

    @property
    def stop(self) -> int:
        """End of the segment in the flat vector."""
        return self.start + self.rank + self.tail


@dataclass(frozen=True)
class Layout:
    """The order of the flat coefficient vector: slot by slot, in each slot expert by expert.

    Args:
        slots: The base's matrices and vectors, each once (tied weights are one slot).
        experts: Content hashes, in the order of the recipe; they key the coefficients.
        ranks: ``[slots, experts]`` number of individually scaled singular directions.
        tails: ``[slots, experts]`` whether one more coefficient scales what lies beyond them.
    """

    slots: tuple[Slot, ...]
    experts: tuple[str, ...]
    ranks: tuple[tuple[int, ...], ...]
    tails: tuple[tuple[bool, ...], ...]

    @cached_property
    def segments(self) -> tuple[tuple[Segment, ...], ...]:
        """``segments[slot][expert]``."""
        start, result = 0, []
        for index, _ in enumerate(self.slots):
            row = []
            for expert, _ in enumerate(self.experts):
                rank, tail = self.ranks[index][expert], self.tails[index][expert]
                row.append(Segment(index, expert, start, rank, tail))
                start += rank + tail
            result.append(tuple(row))
        return tuple(result)

    @cached_property
    def size(self) -> int:
        """Length of the coefficient vector."""
        return self.segments[-1][-1].stop

    @cached_property
    def expert_of(self) -> np.ndarray:
        """``[size]`` int: the expert that each coefficient belongs to."""
        return self._per_coefficient(lambda segment: segment.expert)

    @cached_property
    def in_matrix(self) -> np.ndarray:
        """``[size]`` bool: whether the coefficient belongs to a matrix (SVD mutation's reach)."""
        return self._per_coefficient(lambda segment: self.slots[segment.slot].is_matrix).astype(
            bool
        )

    def groups(self, granularity: Granularity) -> np.ndarray:
        """``[slots]`` int: the slots that share one crossover weight have the same number.

        ``layer`` groups by the first number in the tensor's name (``model.layers.7.…``);
        tensors outside any layer form one group each.
        """
        if granularity == "model":
            return np.zeros(len(self.slots), dtype=np.int64)
        if granularity == "matrix":
            return np.arange(len(self.slots))
        numbers: dict[str, int] = {}
        groups = []
        for slot in self.slots:
            match = re.search(r"\.(\d+)\.", slot.name)
            key = match.group(0) if match else slot.name
            groups.append(numbers.setdefault(key, len(numbers)))
        return np.array(groups)

    @cached_property
    def slot_of(self) -> np.ndarray:
        """``[size]`` int: the slot that each coefficient belongs to."""
        return self._per_coefficient(lambda segment: segment.slot)

    def _per_coefficient(self, value: Callable[[Segment], int]) -> np.ndarray:
        result = np.empty(self.size, dtype=np.int64)
        for row in self.segments:
            for segment in row:
                result[segment.start : segment.stop] = value(segment)
        return result
