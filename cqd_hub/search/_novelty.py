"""An archive without a grid: Dominated Novelty Search."""

from __future__ import annotations

import numpy as np

from cqd_hub.search._archive import Archive
from cqd_hub.search._records import Insertion


class NoveltyArchive(Archive):
    """Dominated Novelty Search (Bahlous-Boldi, Faldor, Grillotti et al. 2025, arXiv 2502.00593).

    Each member's *competition fitness* is the mean Euclidean distance, in the space of the other
    K-1 scores, to its *neighbours* nearest fitter members (to all of them where there are fewer;
    infinite for the fittest). The *capacity* members of highest competition fitness stay. It needs
    neither bounds nor bins and its size does not grow with K.

    Two departures, because scores here are ratios of small integers and ties are the rule:

    - of equal qualities the one told first counts as the fitter, as the incumbent stays in a grid.
      With a merely strict comparison every copy of the best would have infinite fitness, and once a
      skill is solved the archive would never change again;
    - individuals arrive one at a time, not a generation at a time. Of equal competition fitness the
      one told last goes.

    Args:
        skill: The skill whose score is the quality.
        capacity: Most members kept, ≥ 1.
        neighbours: Fitter members averaged over, ≥ 1; the paper's k.

    Raises:
        ValueError: *capacity* or *neighbours* below 1, *skill* negative.
    """

    def __init__(self, *, skill: int, capacity: int, neighbours: int = 3) -> None:
        super().__init__(skill=skill)
        if capacity < 1 or neighbours < 1:
            raise ValueError(
                f"capacity and neighbours must be ≥ 1; got {capacity} and {neighbours}"
            )
        self._capacity = capacity
        # One slot more than the capacity: a newcomer competes before anyone is removed.
        slots = capacity + 1
        self._told = 0
        self._alive = np.zeros(slots, dtype=bool)
        self._order = np.zeros(slots, dtype=np.int64)
        self._individuals = np.zeros(slots, dtype=np.int64)
        self._scores = np.zeros((slots, 0))
        self._fitness = np.zeros(slots)
        # The nearest fitter members of each slot, nearest first; inf and -1 where there are fewer.
        self._near = np.full((slots, neighbours), np.inf)
        self._near_slots = np.full((slots, neighbours), -1)

    @property
    def capacity(self) -> int:
        """Most members kept."""
        return self._capacity

    @property
    def coverage(self) -> float:
        """Members over capacity."""
        return len(self) / self._capacity

    def cell_of(self, scores: np.ndarray) -> None:
        """Return None: there are no cells."""

    def __len__(self) -> int:
        return min(self._told, self._capacity)

    @property
    def skills(self) -> int | None:
        """K, the length of a score vector; None before the first insertion."""
        return self._scores.shape[1] if self._told else None

    def _place(self, individual: int, scores: np.ndarray) -> Insertion:
        if not self._told:
            if self._skill >= len(scores):
                raise ValueError(f"skill must be below K = {len(scores)}; got {self._skill}")
            self._scores = np.zeros((len(self._alive), len(scores)), order="F")
        slot = int(np.argmin(self._alive))
        self._alive[slot] = True
        self._order[slot] = self._told
        self._individuals[slot] = individual
        self._scores[slot] = scores
        self._told += 1
        self._compete(slot)
        if self._told <= self._capacity:
            return Insertion("new", None, None)
        fitness = np.where(self._alive, self._fitness, np.inf)
        equals = np.flatnonzero(self._alive & (fitness == fitness.min()))
        weakest = int(equals[np.argmax(self._order[equals])])
        self._remove(weakest)
        if weakest == slot:
            return Insertion("rejected", None, None)
        return Insertion("improved", None, int(self._individuals[weakest]))

    def _members(self) -> tuple[np.ndarray, np.ndarray]:
        return self._individuals[self._alive], self._scores[self._alive]

    def _compete(self, slot: int) -> None:
        """Find the newcomer's fitter neighbours, and enter it where it is one itself."""
        self._find_neighbours(slot)
        quality = self._scores[:, self._skill]
        distance = self._distances(slot)
        # Equals of a newcomer were told before it, so only strictly lower qualities are weaker.
        rows = np.flatnonzero(
            self._alive & (quality < quality[slot]) & (distance < self._near[:, -1])
        )
        near, slots = self._near[rows], self._near_slots[rows]
        near[:, -1], slots[:, -1] = distance[rows], slot
        order = np.argsort(near, axis=1, kind="stable")
        self._near[rows] = np.take_along_axis(near, order, axis=1)
        self._near_slots[rows] = np.take_along_axis(slots, order, axis=1)
        self._update_fitness(rows)

    def _remove(self, slot: int) -> None:
        self._alive[slot] = False
        for row in np.flatnonzero(self._alive & (self._near_slots == slot).any(axis=1)):
            self._find_neighbours(int(row))

    def _find_neighbours(self, slot: int) -> None:
        quality = self._scores[:, self._skill]
        fitter = np.flatnonzero(
            self._alive
            & (
                (quality > quality[slot])
                | ((quality == quality[slot]) & (self._order < self._order[slot]))
            )
        )
        distance = self._distances(slot)[fitter]
        width = self._near.shape[1]
        if len(fitter) > width:
            chosen = np.argpartition(distance, width - 1)[:width]
            fitter, distance = fitter[chosen], distance[chosen]
        order = np.argsort(distance, kind="stable")
        self._near[slot], self._near_slots[slot] = np.inf, -1
        self._near[slot, : len(order)] = distance[order]
        self._near_slots[slot, : len(order)] = fitter[order]
        self._update_fitness(np.array([slot]))

    def _distances(self, slot: int) -> np.ndarray:
        # Column by column: the same bits for (a, b) as for (b, a), and nothing of size n x K.
        total = np.zeros(len(self._alive))
        for skill in range(self._scores.shape[1]):
            if skill != self._skill:
                total += np.square(self._scores[:, skill] - self._scores[slot, skill])
        return np.sqrt(total)

    def _update_fitness(self, rows: np.ndarray) -> None:
        near = self._near[rows]
        found = np.isfinite(near)
        count = found.sum(axis=1)
        total = np.where(found, near, 0).sum(axis=1)
        self._fitness[rows] = np.where(count, total / np.maximum(count, 1), np.inf)
