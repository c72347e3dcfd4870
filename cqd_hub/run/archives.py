"""Archives from a journal: what the search knows is always rebuilt, never stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cqd_hub.recipe import Recipe
from cqd_hub.recipe.schema import GridArchive as GridSettings
from cqd_hub.run.journal import Journal, Role
from cqd_hub.search import (
    Cycle,
    EliteSampling,
    GridArchive,
    Insertion,
    NoveltyArchive,
    RandomSampling,
    derive_bounds,
)


class Told(NamedTuple):
    """One individual's place in the history of a run.

    Who was stopped early was offered to no archive: no insertions, and scores of NaN.
    """

    individual: int
    scores: np.ndarray
    insertions: tuple[Insertion, ...]


def vector(scores: Mapping[str, float], recipe: Recipe) -> np.ndarray:
    """Scores as ``[K]`` in the recipe's order of skills."""
    return np.array([scores[skill] for skill in recipe.skills])


def make_cycle(recipe: Recipe, expert_scores: Sequence[Mapping[str, float]]) -> Cycle:
    """K empty archives as the recipe describes them.

    Args:
        recipe: The run's recipe.
        expert_scores: Every expert's optimisation scores, from which bounds are derived.
    """
    settings, count = recipe.search.archive, len(recipe.skills)
    archives: list[GridArchive | NoveltyArchive]
    if isinstance(settings, GridSettings):
        if isinstance(settings.bounds, dict):
            bounds = np.array([settings.bounds[skill] for skill in recipe.skills])
        else:
            table = np.array([vector(scores, recipe) for scores in expert_scores])
            bounds = derive_bounds(table, clip=settings.clip)
        archives = [GridArchive(skill=k, bounds=bounds, bins=settings.bins) for k in range(count)]
    else:
        archives = [
            NoveltyArchive(skill=k, capacity=settings.capacity, neighbours=settings.neighbours)
            for k in range(count)
        ]
    sampling = recipe.search.sampling
    return Cycle(
        archives=archives,
        sampling=EliteSampling(low=sampling.low, high=sampling.high)
        if sampling.kind == "elite"
        else RandomSampling(),
        seed=recipe.seed,
    )


def replay(cycle: Cycle, recipe: Recipe, journal: Journal) -> Iterator[Told]:
    """Tell an empty *cycle* everything the journal's run was told, in the same order."""
    told = journal.told()  # before the scores: another process may be writing
    scores, stopped = journal.scores("optimisation"), journal.stopped()
    for individual in told:
        if individual in stopped:
            yield Told(individual, np.full(len(recipe.skills), np.nan), ())
            continue
        row = vector(scores[individual], recipe)
        yield Told(individual, row, cycle.tell(individual, row))


def expert_scores(journal: Journal) -> list[dict[str, float]]:
    """Every expert's optimisation scores, in the order of the recipe."""
    experts = [expert.id for expert in journal.individuals(Role.EXPERT)]
    scores = journal.scores("optimisation")
    return [scores[expert] for expert in experts]
