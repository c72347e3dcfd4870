"""Plans: what a run will take, before any weights are downloaded, and what it took in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from cqd_hub.evaluation.engine.choose import Choice
from cqd_hub.evaluation.engine.choose import Work as Asked
from cqd_hub.genome.held import Weights
from cqd_hub.recipe import Recipe
from cqd_hub.run.device import find_device, find_dtype
from cqd_hub.run.engines import check_engine, choose_engine
from cqd_hub.run.engines import work_of as asked_of
from cqd_hub.run.plan._calibrate import calibrate, execution_seconds
from cqd_hub.run.plan._predict import Plan, load_of, predict
from cqd_hub.run.plan._room import (
    fits,
    free_memory,
    place_weights,
    refuse_misfit,
    whole_memory,
)
from cqd_hub.run.plan._survey import Survey, survey, survey_basis
from cqd_hub.run.plan._took import Took, is_planned
from cqd_hub.run.plan._work import Work, load_work, work_of

if TYPE_CHECKING:
    from cqd_hub.evaluation.skills import Skill
    from cqd_hub.genome import Basis

__all__ = ["Fit", "Plan", "Took", "check_fit", "is_planned", "make_plan", "plan_of"]


class Fit(NamedTuple):
    """An engine that fits a device.

    Args:
        engine: Which, and why.
        weights: Where it keeps what individuals are made of.
    """

    engine: Choice
    weights: Weights


def make_plan(
    recipe: Recipe, folder: Path, *, note: Callable[[str], None] = lambda line: None
) -> Plan:
    """Plan a run from its models' headers, its tasks' prompts and a short calibration.

    Of models on the Hub, configs, tokenizers and headers are asked for, but no weights; tasks load
    their data as a run does.

    Args:
        recipe: Relative paths start from *folder*.
        note: Called with a line for what takes time.

    Raises:
        UserError: Anything wrong with models, tasks or device; the models do not fit it.
        RunError: The Hub does not answer.
    """
    device = find_device(recipe.evaluation.device)
    dtype = find_dtype(recipe.evaluation.dtype, device)
    check_engine(recipe, device)
    with survey(recipe, folder, note) as models:
        work, asked = load_work(recipe, folder, models.tokenizer, note)
        fit = _fitting(recipe, models, work, asked, device, dtype)
        note(f"measuring {device} in {str(dtype).removeprefix('torch.')}")
        rates = calibrate(models.shape, models.folder, device=device, dtype=dtype)
        if work.demand["optimisation"].executed:
            rates = rates._replace(execution=asyncio.run(execution_seconds(recipe.evaluation)))
        return predict(
            recipe,
            models,
            work,
            rates,
            fit.engine,
            device=device,
            dtype=dtype,
            weights=fit.weights,
        )


def check_fit(
    recipe: Recipe,
    basis: Basis,
    skills: Mapping[str, Skill],
    *,
    device: str,
    dtype: torch.dtype,
) -> Fit:
    """The engine for a device and where it keeps weights; refused before the device is filled.

    Raises:
        UserError: With the arithmetic, and what would fit.
    """
    models, work = survey_basis(basis), work_of(skills)
    asked = asked_of(skills, recipe.search.children_per_step)
    return _fitting(recipe, models, work, asked, device, dtype)


async def plan_of(
    recipe: Recipe, basis: Basis, skills: Mapping[str, Skill], *, workers: int = 1
) -> Plan:
    """The plan of a run whose models and tasks are open; measures for some seconds.

    Args:
        workers: How many devices like this one evaluate children.
    """
    device = find_device(recipe.evaluation.device)
    dtype = find_dtype(recipe.evaluation.dtype, device)
    models, work = survey_basis(basis), work_of(skills)
    asked = asked_of(skills, recipe.search.children_per_step)
    fit = _choose(recipe, models, work, asked, device, dtype, free=whole_memory(device))
    rates = calibrate(models.shape, models.folder, device=device, dtype=dtype)
    if work.demand["optimisation"].executed:
        rates = rates._replace(execution=await execution_seconds(recipe.evaluation))
    return predict(
        recipe,
        models,
        work,
        rates,
        fit.engine,
        device=device,
        dtype=dtype,
        weights=fit.weights,
        workers=workers,
    )


def _fitting(
    recipe: Recipe, models: Survey, work: Work, asked: Asked, device: str, dtype: torch.dtype
) -> Fit:
    free = free_memory(device)
    fit = _choose(recipe, models, work, asked, device, dtype, free=free)
    refuse_misfit(
        models.shape,
        load_of(recipe, work, fit.engine.width),
        engine=fit.engine.kind,
        device=device,
        dtype=dtype,
        weights=fit.weights,
        free=free,
    )
    return fit


def _choose(
    recipe: Recipe,
    models: Survey,
    work: Work,
    asked: Asked,
    device: str,
    dtype: torch.dtype,
    *,
    free: int,
) -> Fit:
    """The faster engine; the sequential one where the other's factors take too much memory."""
    shape, wanted = models.shape, recipe.evaluation.weights
    engine = choose_engine(recipe, shape.layout, asked, device)
    while True:
        load, kind = load_of(recipe, work, engine.width), engine.kind
        weights = place_weights(
            shape, load, wanted=wanted, engine=kind, device=device, dtype=dtype, free=free
        )
        if (
            kind == "sequential"
            or recipe.evaluation.engine == kind
            or fits(
                shape, load, engine=kind, device=device, dtype=dtype, weights=weights, free=free
            )
        ):
            return Fit(engine, weights)
        engine = Choice("sequential", 2, "a population's factors do not fit the device")
