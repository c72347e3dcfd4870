"""The cycle: who the parents of the next children are, and what their scores change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cqd_hub.randomness import generator
from cqd_hub.search._archive import Archive, checked_scores
from cqd_hub.search._records import Insertion, Proposal
from cqd_hub.search._sampling import Sampling


class Cycle:
    """CycleQD's loop as ask/tell (arXiv 2410.14735, Algorithm 1); evaluation is the caller's.

    In generation *t* the active skill is *t mod K*: both parents of every child are drawn from that
    skill's archive. Every individual told, expert or child, is offered to all K archives.

    A generation has as many children as are asked for. All of them share the active skill and the
    archives as they stand when they are asked for; one child per generation is the paper.

    Nothing random is kept: a child's parents follow from the seed, its id and the elites of the
    active archive. Telling a new cycle the same individuals in the same order gives the same
    archives, and so the same next children.

    Args:
        archives: K ≥ 2 archives, the k-th with skill k as its quality.
        sampling: How parents are drawn.
        seed: The run's seed, ≥ 0.
        order: Skills to make active in turn. None is 0 … K-1; ``(k,)`` never cycles, the paper's QD
            baseline (Table 2, row 1).

    Raises:
        ValueError: Fewer than two archives, archives not in the order of their skills or made for
            another K, an empty *order*, or one that names something other than a skill.
    """

    def __init__(
        self,
        *,
        archives: Sequence[Archive],
        sampling: Sampling,
        seed: int,
        order: Sequence[int] | None = None,
    ) -> None:
        self._archives = tuple(archives)
        skills = range(len(self._archives))
        if len(skills) < 2 or [archive.skill for archive in self._archives] != list(skills):
            raise ValueError(
                "archives must be K ≥ 2, the k-th with skill=k; got skills "
                f"{[archive.skill for archive in self._archives]}"
            )
        if any(archive.skills not in (None, len(skills)) for archive in self._archives):
            raise ValueError(
                f"{len(skills)} archives need score vectors of that length; got "
                f"{[archive.skills for archive in self._archives]}"
            )
        self._order = tuple(skills if order is None else order)
        if not self._order or not set(self._order) <= set(skills):
            raise ValueError(f"order must name skills in 0 … {len(skills) - 1}; got {self._order}")
        self._sampling = sampling
        self._seed = seed
        self._told: set[int] = set()

    @property
    def archives(self) -> tuple[Archive, ...]:
        """The K archives, in the order of their skills."""
        return self._archives

    def ask(self, generation: int, count: int, first: int) -> list[Proposal]:
        """Return the children of one generation.

        Args:
            generation: Counted from 0.
            count: Number of children, ≥ 1.
            first: Id of the first child; the others follow.

        Raises:
            ValueError: Nobody was told yet, *count* below 1, *generation* or *first* negative.
        """
        if generation < 0 or count < 1 or first < 0:
            raise ValueError(
                "generation and first must be ≥ 0 and count ≥ 1; "
                f"got {generation}, {first} and {count}"
            )
        skill = self._order[generation % len(self._order)]
        elites = self._archives[skill].elites
        proposals = []
        for individual in range(first, first + count):
            rng = generator(self._seed, individual, "parents")
            mother, father = self._sampling.pick(elites, rng, 2)
            proposals.append(Proposal(individual, generation, skill, (mother, father)))
        return proposals

    def out_of_reach(self, low: np.ndarray, high: np.ndarray) -> bool:
        """Whether no archive would keep an individual whose (K,) scores lie from *low* to *high*.

        What grid archives say now holds for good: their elites only give way to better ones.
        """
        return all(archive.out_of_reach(low, high) for archive in self._archives)

    def tell(self, individual: int, scores: np.ndarray) -> tuple[Insertion, ...]:
        """Offer an evaluated individual to all K archives and return what each did with it.

        Raises:
            ValueError: *scores* is not (K,), a score is NaN or outside [0, 1], or the individual
                was told before. No archive has changed then.
        """
        checked = checked_scores(scores, len(self._archives))
        if individual in self._told:
            raise ValueError(f"individual {individual} was told before")
        self._told.add(individual)
        return tuple(archive.insert(individual, checked) for archive in self._archives)
