"""Plans: what a run will take, before any weights are downloaded, and what it took in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cqd_hub.recipe import Recipe
from cqd_hub.run.device import find_device, find_dtype
from cqd_hub.run.engines import choose_engine
from cqd_hub.run.engines import work_of as asked_of
from cqd_hub.run.plan._calibrate import calibrate, execution_seconds
from cqd_hub.run.plan._predict import Plan, load_of, predict
from cqd_hub.run.plan._room import refuse_misfit
from cqd_hub.run.plan._survey import survey, survey_basis
from cqd_hub.run.plan._took import Took, is_planned
from cqd_hub.run.plan._work import load_work, work_of

if TYPE_CHECKING:
    from cqd_hub.evaluation.skills import Skill
    from cqd_hub.genome import Basis

__all__ = ["Plan", "Took", "check_fit", "is_planned", "make_plan", "plan_of"]


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
    with survey(recipe, folder, note) as models:
        work, asked = load_work(recipe, folder, models.tokenizer, note)
        engine = choose_engine(recipe, models.shape.layout, asked, device)
        load = load_of(recipe, work, engine.width)
        refuse_misfit(models.shape, load, engine=engine.kind, device=device, dtype=dtype)
        note(f"measuring {device} in {str(dtype).removeprefix('torch.')}")
        rates = calibrate(models.shape, models.folder, device=device, dtype=dtype)
        if work.demand["optimisation"].executed:
            rates = rates._replace(execution=asyncio.run(execution_seconds(recipe.evaluation)))
        return predict(recipe, models, work, rates, engine, device=device, dtype=dtype)


def check_fit(
    recipe: Recipe,
    basis: Basis,
    skills: Mapping[str, Skill],
    *,
    device: str,
    dtype: torch.dtype,
) -> None:
    """Refuse a device that does not hold what an engine keeps there, before it is filled.

    Raises:
        UserError: With the arithmetic, and what would fit.
    """
    models, work = survey_basis(basis), work_of(skills)
    asked = asked_of(skills, recipe.search.children_per_step)
    engine = choose_engine(recipe, basis.layout, asked, device)
    refuse_misfit(
        models.shape, load_of(recipe, work), engine=engine.kind, device=device, dtype=dtype
    )


async def plan_of(
    recipe: Recipe, basis: Basis, skills: Mapping[str, Skill], *, workers: int = 1
) -> Plan:
    """The plan of a run whose models and tasks are open; measures for about two seconds.

    Args:
        workers: How many devices like this one evaluate children.
    """
    device = find_device(recipe.evaluation.device)
    dtype = find_dtype(recipe.evaluation.dtype, device)
    models, work = survey_basis(basis), work_of(skills)
    asked = asked_of(skills, recipe.search.children_per_step)
    engine = choose_engine(recipe, models.shape.layout, asked, device)
    rates = calibrate(models.shape, models.folder, device=device, dtype=dtype)
    if work.demand["optimisation"].executed:
        rates = rates._replace(execution=await execution_seconds(recipe.evaluation))
    return predict(recipe, models, work, rates, engine, device=device, dtype=dtype, workers=workers)
