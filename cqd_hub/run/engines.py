"""The engine that a recipe's work is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine import Generate
from cqd_hub.evaluation.engine.choose import Choice, Work, choose
from cqd_hub.evaluation.skill import Skill
from cqd_hub.recipe import Recipe

if TYPE_CHECKING:
    from cqd_hub.evaluation.engine.sequential import SequentialEngine
    from cqd_hub.genome import Basis
    from cqd_hub.genome.merge.store import MergeStore

# An episode's prompts are not known beforehand.
_PROMPT, _ANSWER = 512, 64
_HALF = 0.5  # of its limit is what an answer takes
_DRAFTED = 0.2  # of its passes, where its parents' answers are drafts


def open_engine(
    recipe: Recipe,
    basis: Basis,
    skills: Mapping[str, Skill],
    *,
    device: str,
    dtype: Any,
    merges: MergeStore | None,
    note: Callable[[str], None],
) -> SequentialEngine:
    """The engine that ``evaluation.engine`` names, or the faster one.

    Raises:
        UserError: The recipe names one that cannot evaluate its individuals.
    """
    from cqd_hub.evaluation.engine.population import PopulationEngine
    from cqd_hub.evaluation.engine.sequential import SequentialEngine

    wanted, tokens = recipe.evaluation.engine, recipe.evaluation.batch_tokens
    choice = _choice(recipe, basis, skills, device)
    if wanted == "population" or (wanted == "auto" and choice.kind == "population"):
        try:
            if problem := _unshareable(recipe):
                raise UserError(
                    f"a population cannot share a batch: {problem}",
                    where="evaluation.engine",
                    remedy="use sequential or auto",
                )
            engine = PopulationEngine(
                basis,
                device=device,
                dtype=dtype,
                batch_tokens=tokens,
                merges=merges,
                width=choice.width,
            )
        except UserError as error:
            if wanted == "population" or error.where != "evaluation.engine":
                raise
            note(f"one individual after the other: {error.what}")
        else:
            note(f"{choice.width} individuals side by side: {choice.reason}")
            return engine
    return SequentialEngine(basis, device=device, dtype=dtype, batch_tokens=tokens, merges=merges)


def _unshareable(recipe: Recipe) -> str:
    variation = recipe.variation
    if variation.crossover.method != "linear":
        return f"children of the crossover {variation.crossover.method} are whole models"
    if variation.mutation.kind == "gaussian":
        return "Gaussian noise is no sum of the experts' directions"
    return ""


def _choice(recipe: Recipe, basis: Basis, skills: Mapping[str, Skill], device: str) -> Choice:
    mutation = recipe.variation.mutation
    cores = mutation.kind == "svd" and mutation.of == "child"
    work = work_of(skills, recipe.search.children_per_step)
    return choose(work, basis.layout, device=device.partition(":")[0], cores=cores)


def work_of(skills: Mapping[str, Skill], children: int) -> Work:
    """What a child is asked on the optimisation samples."""
    prompts, answers = list[float](), list[float]()
    for skill in skills.values():
        for sample in skill.samples["optimisation"]:
            requests = getattr(sample, "requests", None)
            if requests is None:
                prompts.append(_PROMPT)
                answers.append(_ANSWER * _DRAFTED)
                continue
            for request in (request for repeats in requests for request in repeats):
                prompts.append(len(request.prompt))
                passes = 0.0
                if isinstance(request, Generate):
                    passes = request.max_new_tokens * _HALF
                    passes *= _DRAFTED if request.temperature <= 0 else 1.0
                answers.append(passes)
    count = max(len(prompts), 1)
    return Work(len(prompts), sum(prompts) / count, sum(answers) / count, children)
