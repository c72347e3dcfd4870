"""The records that archives, sampling and the cycle pass to each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np


class Elite(NamedTuple):
    """One archived individual.

    Attributes:
        individual: Its id in the journal.
        scores: (K,) float64, its score on every skill, in [0, 1].
    """

    individual: int
    scores: np.ndarray


class Insertion(NamedTuple):
    """What an archive did with an individual offered to it.

    Attributes:
        status: ``"new"`` filled a free place, ``"improved"`` took somebody's place, ``"rejected"``
            was not kept.
        cell: The individual's cell, whether kept or not; None in an archive without a grid.
        displaced: The individual that lost its place, if one did.
    """

    status: Literal["new", "improved", "rejected"]
    cell: tuple[int, ...] | None
    displaced: int | None


class Proposal(NamedTuple):
    """A child to make and evaluate.

    Attributes:
        individual: The id the child will have.
        generation: The generation it belongs to.
        skill: The active skill: quality in the archive its parents come from.
        parents: The ids of both parents, the same one twice where the archive holds only one.
    """

    individual: int
    generation: int
    skill: int
    parents: tuple[int, int]


class ArchiveSummary(NamedTuple):
    """An archive in five numbers, for progress and curves.

    Attributes:
        best: Highest quality held; None when empty.
        mean: Mean quality over the elites; None when empty.
        coverage: Fraction of the places that are filled, in [0, 1].
        qd_score: Sum of the elites' qualities.
        size: Number of elites.
    """

    best: float | None
    mean: float | None
    coverage: float
    qd_score: float
    size: int


class Elites:
    """The elites of one archive as two aligned read-only arrays; also iterates as `Elite` records.

    Attributes:
        individuals: (n,) int64.
        scores: (n, K) float64.
    """

    def __init__(self, individuals: np.ndarray, scores: np.ndarray) -> None:
        self.individuals = np.array(individuals, dtype=np.int64)
        self.scores = np.array(scores, dtype=np.float64)
        self.individuals.flags.writeable = False
        self.scores.flags.writeable = False

    def __len__(self) -> int:
        return len(self.individuals)

    def __getitem__(self, index: int) -> Elite:
        return Elite(int(self.individuals[index]), self.scores[index])

    def __iter__(self) -> Iterator[Elite]:
        return (self[index] for index in range(len(self)))
