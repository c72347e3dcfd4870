"""Scores outside an evolution: of a run's individuals, of experts, of any model of the base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine import Candidate
from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.genome import Genome
from cqd_hub.hub.reference import is_reference, parse
from cqd_hub.recipe import Recipe, Split
from cqd_hub.run.directory import read_manifest, read_recipe
from cqd_hub.run.journal import Journal
from cqd_hub.run.lineup import shares_kept
from cqd_hub.run.merges import present
from cqd_hub.run.models import pins_of
from cqd_hub.run.select import find
from cqd_hub.run.workbench import open_workbench
from cqd_hub.statistics import Interval, average_interval, mean_interval


class Scored(NamedTuple):
    """One model's scores with 95 % intervals."""

    name: str
    skills: dict[str, Interval]
    average: Interval


async def evaluate_models(
    recipe: Recipe,
    recipe_folder: Path,
    models: Sequence[str],
    split: Split,
    *,
    note: Callable[[str], None] = lambda line: None,
) -> list[Scored]:
    """Evaluate the base, experts of the recipe, or other fine-tunes of the same base.

    Args:
        models: ``base``, an expert's name, a model or adapter folder, or a model of the Hub; base
            and all experts if empty.

    Raises:
        UserError: No such model, or not one of this base.
    """
    names, here = list(models) or ["base", *recipe.experts], Path.cwd()
    folders = {
        f"model-{number}": str(parse(name) if is_reference(name, here) else Path(name).resolve())
        for number, name in enumerate(names)
        if name != "base" and name not in recipe.experts
    }
    for place in folders.values():
        if not is_reference(place, here) and not Path(place).is_dir():
            raise UserError(
                "no such expert or model folder",
                where=place,
                remedy=f"name base, {', '.join(recipe.experts)}, a folder or a model of the Hub",
            )
    wider = recipe.model_copy(update={"experts": {**recipe.experts, **folders}})
    async with open_workbench(wider, recipe_folder, note=note) as bench:
        layout, hash_ = bench.basis.layout, bench.basis.hash
        order, kept, result = list(wider.experts), shares_kept(bench.basis), []
        for number, name in enumerate(names):
            key = name if name in recipe.experts else f"model-{number}"
            genome = (
                Genome.of_base(hash_, layout)
                if name == "base"
                else Genome.of_expert(hash_, layout, order.index(key))
            )
            if name != "base" and kept[order.index(key)] < 0.999:
                name = f"{name}, rank {recipe.genome.rank}"
            evaluation = await bench.evaluator.evaluate(Candidate(number, genome), split)
            result.append(_scored(name, list(recipe.skills), evaluation.measurements))
        return result


async def evaluate_individuals(
    folder: Path,
    who: Sequence[str],
    split: Split,
    *,
    note: Callable[[str], None] = lambda line: None,
) -> list[Scored]:
    """Evaluate individuals of a run again, without touching its journal.

    Args:
        folder: The run directory.
        who: See `cqd_hub.run.select.WHO`; empty for ``best``.
    """
    recipe, manifest = read_recipe(folder), read_manifest(folder)
    assert manifest is not None
    journal = Journal(folder)
    try:
        chosen = [(name, find(name, folder, recipe, journal)) for name in who or ["best"]]
    finally:
        journal.close()
    place = Path(manifest["folder"])
    expected = manifest["basis"]
    async with open_workbench(
        recipe, place, run=folder, expected=expected, pins=pins_of(manifest), note=note
    ) as bench:
        result = []
        for name, individual in chosen:
            candidate = Candidate(individual.id, Genome.from_bytes(individual.genome))
            async with present(bench.merges, candidate.genome):
                evaluation = await bench.evaluator.evaluate(candidate, split)
            result.append(_scored(name, list(recipe.skills), evaluation.measurements))
        return result


def _scored(name: str, skills: Sequence[str], measurements: Sequence[Measurement]) -> Scored:
    found: dict[str, dict[str, list[float]]] = {skill: {} for skill in skills}
    for one in measurements:
        found[one.skill].setdefault(one.sample, []).append(one.score)
    table = {  # repeats averaged: they say nothing of other samples
        skill: np.array([np.mean(scores) for scores in samples.values()])
        for skill, samples in found.items()
    }
    return Scored(
        name,
        {skill: mean_interval(scores) for skill, scores in table.items()},
        average_interval(list(table.values())),
    )
