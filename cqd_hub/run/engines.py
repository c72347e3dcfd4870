"""The engine that a recipe's work is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine import Generate
from cqd_hub.evaluation.engine.choose import Choice, Work, choose
from cqd_hub.evaluation.skill import Skill
from cqd_hub.recipe import Recipe
from cqd_hub.run.device import find_dtype

if TYPE_CHECKING:
    from cqd_hub.evaluation.engine.sequential import SequentialEngine
    from cqd_hub.genome import Basis, Layout
    from cqd_hub.genome.held import Weights
    from cqd_hub.genome.merge.store import MergeStore

# An episode's prompts are not known beforehand.
_PROMPT, _ANSWER = 512, 64
_HALF = 0.5  # of its limit is what an answer takes
_DRAFTED = 0.2  # of its passes, where its parents' answers are drafts


def open_engine(
    recipe: Recipe,
    basis: Basis,
    choice: Choice,
    *,
    device: str,
    dtype: Any,
    merges: MergeStore | None,
    note: Callable[[str], None],
    weights: Weights = "device",
) -> SequentialEngine:
    """The engine that was chosen, or the sequential one where the model's modules are in its way.

    Raises:
        UserError: The recipe names one that cannot evaluate its individuals.
    """
    from cqd_hub.evaluation.engine.population import PopulationEngine
    from cqd_hub.evaluation.engine.sequential import SequentialEngine

    tokens = recipe.evaluation.batch_tokens
    kind: type[SequentialEngine] = SequentialEngine
    if choice.kind == "vllm":
        from cqd_hub.evaluation.engine.vllm import VllmEngine

        note("starting vLLM")
        kind = VllmEngine
    if weights == "host" and device != "cpu":
        note("base and experts stay in the host's memory and are copied for every child")
    if choice.kind == "population":
        try:
            engine = PopulationEngine(
                basis,
                device=device,
                dtype=dtype,
                batch_tokens=tokens,
                merges=merges,
                weights=weights,
                width=choice.width,
            )
        except UserError as error:
            if recipe.evaluation.engine == "population" or error.where != "evaluation.engine":
                raise
            note(f"one individual after the other: {error.what}")
        else:
            note(f"{choice.width} individuals side by side: {choice.reason}")
            return engine
    return kind(
        basis, device=device, dtype=dtype, batch_tokens=tokens, merges=merges, weights=weights
    )


def check_engine(recipe: Recipe, device: str) -> None:
    """Refuse an engine that is not to be had here, before models are.

    Raises:
        UserError: vLLM is asked for and not installed, of another version, or without a GPU.
    """
    if recipe.evaluation.engine == "vllm":
        from cqd_hub.evaluation.engine.vllm import check_vllm

        check_vllm(device)


def choose_engine(recipe: Recipe, layout: Layout, work: Work, device: str) -> Choice:
    """What ``evaluation.engine`` names, or the faster one that can evaluate a recipe's children.

    Raises:
        UserError: The recipe names one that cannot.
    """
    mutation, wanted = recipe.variation.mutation, recipe.evaluation.engine
    cores = mutation.kind == "svd" and mutation.of == "child"
    dtype = str(find_dtype(recipe.evaluation.dtype, device)).removeprefix("torch.")
    choice = choose(work, layout, device=device.partition(":")[0], dtype=dtype, cores=cores)
    problem = _unshareable(recipe)
    if wanted == "population" and problem:
        raise UserError(
            f"a population cannot share a batch: {problem}",
            where="evaluation.engine",
            remedy="use sequential or auto",
        )
    if wanted == "vllm":
        return Choice(wanted, 2, "the recipe asks for it")
    if wanted == "population":
        return choice._replace(kind=wanted, width=max(choice.width, 2))
    if wanted == "sequential" or (choice.kind == "population" and problem):
        return Choice("sequential", 2, problem or "the recipe asks for it")
    return choice


def _unshareable(recipe: Recipe) -> str:
    variation = recipe.variation
    if variation.crossover.method != "linear":
        return f"children of the crossover {variation.crossover.method} are whole models"
    if variation.mutation.kind == "gaussian":
        return "Gaussian noise is no sum of the experts' directions"
    return ""


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
