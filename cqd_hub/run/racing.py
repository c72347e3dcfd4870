"""What a child must beat: archives as they stood, small enough to travel with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cqd_hub.recipe import Recipe
from cqd_hub.recipe.schema import GridArchive as GridSettings
from cqd_hub.search import Cycle, GridArchive


@dataclass(frozen=True, eq=False)
class Standing:
    """Grid archives at one moment, their elites by their scores alone.

    Elites of a grid only give way to better ones, so whoever can enter none of the archives as they
    stood can enter none of them later.

    Args:
        skills: K names, in the order of the archives.
        bounds: (K, 2) lowest and highest score.
        bins: Per measure.
        elites: Per archive, (n, K) scores.
    """

    skills: tuple[str, ...]
    bounds: np.ndarray
    bins: int
    elites: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, cycle: Cycle, recipe: Recipe) -> Standing:
        """How the archives of a run stand now."""
        settings, first = recipe.search.archive, cycle.archives[0]
        assert isinstance(settings, GridSettings)
        assert isinstance(first, GridArchive)
        elites = tuple(archive.elites.scores for archive in cycle.archives)
        return cls(tuple(recipe.skills), first.bounds, settings.bins, elites)

    def decided(self, bounds: Mapping[str, tuple[float, float]]) -> bool:
        """Whether nobody whose scores lie within these bounds can enter an archive."""
        low, high = np.array([bounds[skill] for skill in self.skills]).T
        return all(archive.out_of_reach(low, high) for archive in self._archives)

    def order(self, samples: Mapping[str, int]) -> tuple[str, ...]:
        """The skills in the order in which to ask their samples.

        While the last skill is open the others are known, and the fewer cells its open samples can
        span the earlier a child is decided: last comes the skill with most samples to a cell.
        """
        low, high = self.bounds.T
        to_a_cell = dict(zip(self.skills, high - low, strict=True))
        return tuple(sorted(self.skills, key=lambda skill: to_a_cell[skill] * samples[skill]))

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "skills": self.skills,
            "bounds": self.bounds.tolist(),
            "bins": self.bins,
            "elites": [scores.tolist() for scores in self.elites],
        }

    @classmethod
    def of_record(cls, told: Mapping[str, Any]) -> Standing:
        """What `record` wrote."""
        return cls(
            tuple(told["skills"]),
            np.array(told["bounds"]),
            told["bins"],
            tuple(np.array(scores) for scores in told["elites"]),
        )

    @cached_property
    def _archives(self) -> tuple[GridArchive, ...]:
        archives = tuple(
            GridArchive(skill=k, bounds=self.bounds, bins=self.bins)
            for k in range(len(self.skills))
        )
        for archive, elites in zip(archives, self.elites, strict=True):
            for number, scores in enumerate(elites):
                archive.insert(number, scores)
        return archives
