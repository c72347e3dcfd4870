"""What every archive offers, whatever decides who stays in it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from cqd_hub.search._records import ArchiveSummary, Elite, Elites, Insertion


def checked_scores(scores: np.ndarray, skills: int | None) -> np.ndarray:
    """Return a read-only float64 copy of *scores*.

    Raises:
        ValueError: Not one finite score in [0, 1] per skill, or fewer than two skills.
    """
    checked = np.array(scores, dtype=np.float64)
    if checked.ndim != 1 or checked.size < 2 or (skills is not None and checked.size != skills):
        wanted = f"({skills},)" if skills is not None else "(K,) with K ≥ 2"
        raise ValueError(f"scores must have shape {wanted}, one per skill; got {checked.shape}")
    # Written so that NaN fails it too.
    if not bool(np.all((checked >= 0) & (checked <= 1))):
        raise ValueError(f"scores must lie in [0, 1]; got {checked.tolist()}")
    checked.flags.writeable = False
    return checked


class Archive(ABC):
    """A collection of elites in which one skill's score is the quality, the others the measures.

    Args:
        skill: The skill whose score is the quality, in 0 … K-1.

    Raises:
        ValueError: *skill* is negative.
    """

    def __init__(self, *, skill: int) -> None:
        if skill < 0:
            raise ValueError(f"skill must be an index ≥ 0; got {skill}")
        self._skill = skill
        self._elites: Elites | None = None

    @property
    def skill(self) -> int:
        """The skill whose score is the quality."""
        return self._skill

    @property
    @abstractmethod
    def skills(self) -> int | None:
        """K, the length of a score vector; None where only the first one will tell."""

    def insert(self, individual: int, scores: np.ndarray) -> Insertion:
        """Offer an individual with its (K,) *scores*; keep it, or not.

        Raises:
            ValueError: *scores* has the wrong shape, or a score is NaN or outside [0, 1].
        """
        insertion = self._place(individual, checked_scores(scores, self.skills))
        if insertion.status != "rejected":
            self._elites = None
        return insertion

    def out_of_reach(self, low: np.ndarray, high: np.ndarray) -> bool:
        """Whether `insert` would reject every (K,) score vector from *low* to *high*.

        Once true it stays true where elites only give way to better ones. An archive that cannot
        tell says False.
        """
        return False

    @property
    def elites(self) -> Elites:
        """A snapshot of the elites, ordered by individual id."""
        if self._elites is None:
            individuals, scores = self._members()
            order = np.argsort(individuals, kind="stable")
            self._elites = Elites(individuals[order], scores[order])
        return self._elites

    @property
    @abstractmethod
    def coverage(self) -> float:
        """Fraction of the places that are filled, in [0, 1]."""

    @property
    def qd_score(self) -> float:
        """Sum of the elites' qualities."""
        return float(np.sum(self.elites.scores[:, self._skill])) if len(self) else 0.0

    @property
    def best(self) -> Elite | None:
        """The elite of highest quality; of equals the most recent one (§3.4); None when empty."""
        if not len(self):
            return None
        quality = self.elites.scores[:, self._skill]
        return self.elites[int(np.flatnonzero(quality == quality.max())[-1])]

    @property
    def summary(self) -> ArchiveSummary:
        """The archive in five numbers."""
        if not len(self):
            return ArchiveSummary(None, None, 0.0, 0.0, 0)
        quality = self.elites.scores[:, self._skill]
        total = self.qd_score
        return ArchiveSummary(
            float(quality.max()), total / len(self), self.coverage, total, len(self)
        )

    @abstractmethod
    def cell_of(self, scores: np.ndarray) -> tuple[int, ...] | None:
        """Return the cell of an individual with these (K,) *scores*; None without a grid."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _place(self, individual: int, scores: np.ndarray) -> Insertion:
        """Keep or reject an individual with checked scores."""

    @abstractmethod
    def _members(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (n,) individuals and (n, K) scores, in any order."""
