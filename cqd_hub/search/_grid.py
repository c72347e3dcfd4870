"""The paper's archive: a uniform grid over the measures, one elite per cell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from cqd_hub.search._archive import Archive, checked_scores
from cqd_hub.search._records import Elite, Insertion

# Scores are ratios of small integers, so many fall exactly on an edge; this keeps the last bit of
# a rounded division from moving them to the cell below.
_EDGE = 1e-9


class GridArchive(Archive):
    """MAP-Elites grid (Mouret and Clune 2015) as CycleQD uses it (arXiv 2410.14735 §3, A.1.3).

    The K-1 scores other than the quality are cut into uniform bins. Cells are half open, so a score
    on an edge belongs to the upper cell; the last cell is closed and scores outside the bounds go
    to the outermost cells. A cell is taken over only by a strictly higher quality.

    Args:
        skill: The skill whose score is the quality.
        bounds: (K, 2) lowest and highest score per skill; the quality's own row is not used.
        bins: Cells per measure: one number, or one per skill (K of them, the quality's not used).

    Raises:
        ValueError: *bounds* or *bins* of the wrong shape, an empty or NaN interval, a *skill* that
            is not one of K, fewer than one bin.
    """

    def __init__(self, *, skill: int, bounds: np.ndarray, bins: int | Sequence[int] = 15) -> None:
        super().__init__(skill=skill)
        bounds = np.array(bounds, dtype=np.float64)
        if bounds.ndim != 2 or bounds.shape[0] < 2 or bounds.shape[1] != 2:
            raise ValueError(f"bounds must have shape (K, 2) with K ≥ 2; got {bounds.shape}")
        skills = len(bounds)
        if skill >= skills:
            raise ValueError(f"skill must be below K = {skills}; got {skill}")
        per_skill = list(bins) if isinstance(bins, Sequence) else [bins] * skills
        if len(per_skill) != skills or min(per_skill) < 1:
            raise ValueError(f"bins must be one number ≥ 1, or {skills} of them; got {bins}")
        measures = [other for other in range(skills) if other != skill]
        low, high = bounds[measures].T
        if not bool(np.all(np.isfinite(bounds[measures])) and np.all(low < high)):
            raise ValueError(
                f"every lower bound must lie below its upper bound; got {bounds.tolist()} "
                "(derive_bounds makes valid ones)"
            )
        self._bounds = bounds
        self._measures = measures
        self._bins = tuple(int(per_skill[other]) for other in measures)
        self._low, self._width = low, high - low
        self._slots: dict[tuple[int, ...], int] = {}
        self._individuals = np.empty(64, dtype=np.int64)
        self._scores = np.empty((64, skills))

    @property
    def skills(self) -> int:
        """K, the length of a score vector."""
        return len(self._bounds)

    @property
    def bins(self) -> tuple[int, ...]:
        """Cells along each of the K-1 measures, in the order of the skills."""
        return self._bins

    @property
    def measures(self) -> tuple[int, ...]:
        """The K-1 skills that span the grid, in the order of a cell's coordinates."""
        return tuple(self._measures)

    @property
    def bounds(self) -> np.ndarray:
        """(K, 2) lowest and highest score per skill."""
        return self._bounds.copy()

    @property
    def coverage(self) -> float:
        """Filled cells over all cells, reachable or not."""
        return len(self) / math.prod(self._bins)

    @property
    def cells(self) -> dict[tuple[int, ...], Elite]:
        """A snapshot of the elite of every filled cell, in the order of the cells."""
        return {
            cell: Elite(int(self._individuals[slot]), self._scores[slot].copy())
            for cell, slot in sorted(self._slots.items())
        }

    def cell_of(self, scores: np.ndarray) -> tuple[int, ...]:
        """Return the K-1 coordinates, counted from 0, of the cell these (K,) *scores* fall in.

        Raises:
            ValueError: *scores* has the wrong shape, or a score is NaN or outside [0, 1].
        """
        return self._cell(checked_scores(scores, self.skills))

    def out_of_reach(self, low: np.ndarray, high: np.ndarray) -> bool:
        """Whether every cell between is held by an elite at least as good as *high*'s quality."""
        first, last = self._cell(low), self._cell(high)
        sides = [range(a, b + 1) for a, b in zip(first, last, strict=True)]
        if math.prod(map(len, sides)) > len(self):
            return False
        slots = [self._slots.get(cell) for cell in itertools.product(*sides)]
        quality = high[self._skill]
        return all(
            slot is not None and self._scores[slot, self._skill] >= quality for slot in slots
        )

    def __len__(self) -> int:
        return len(self._slots)

    def _cell(self, scores: np.ndarray) -> tuple[int, ...]:
        place = np.floor((scores[self._measures] - self._low) / self._width * self._bins + _EDGE)
        return tuple(np.clip(place, 0, np.subtract(self._bins, 1)).astype(int).tolist())

    def _place(self, individual: int, scores: np.ndarray) -> Insertion:
        cell = self._cell(scores)
        slot = self._slots.get(cell)
        if slot is None:
            slot = len(self._slots)
            if slot == len(self._individuals):
                self._individuals = np.resize(self._individuals, 2 * slot)
                self._scores = np.resize(self._scores, (2 * slot, self.skills))
            self._slots[cell] = slot
            insertion = Insertion("new", cell, None)
        elif scores[self._skill] > self._scores[slot, self._skill]:
            insertion = Insertion("improved", cell, int(self._individuals[slot]))
        else:
            return Insertion("rejected", cell, None)
        self._individuals[slot] = individual
        self._scores[slot] = scores
        return insertion

    def _members(self) -> tuple[np.ndarray, np.ndarray]:
        return self._individuals[: len(self)], self._scores[: len(self)]
