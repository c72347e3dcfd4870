"""Everything a recipe needs open at once: models, basis, tasks, engine, sandbox."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import platform
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cqd_hub import __version__
from cqd_hub.evaluation.episodes import Resources
from cqd_hub.evaluation.evaluator import Evaluator
from cqd_hub.evaluation.sandbox import Sandbox, open_sandbox
from cqd_hub.evaluation.skills import load_skills
from cqd_hub.recipe import Recipe
from cqd_hub.recipe.schema import Evaluation
from cqd_hub.run.device import find_device, find_dtype
from cqd_hub.run.engines import check_engine, open_engine
from cqd_hub.run.lineup import Lineup, check_basis, check_crossover, factor
from cqd_hub.run.merges import open_merges
from cqd_hub.run.models import find_models, open_found
from cqd_hub.run.plan import check_fit

if TYPE_CHECKING:
    from cqd_hub.evaluation.engine.sequential import SequentialEngine

_VERSIONED = ("torch", "transformers", "safetensors", "numpy", "lm-eval", "datasets", "peft")


@dataclass(frozen=True)
class Workbench(Lineup):
    """A lineup, and all it takes to evaluate what is made of it.

    Args:
        engine: Running.
        sandbox: Open, or None where nothing is executed.
        evaluator: Over all of these.
    """

    engine: SequentialEngine
    sandbox: Sandbox | None
    evaluator: Evaluator

    def manifest(self) -> dict[str, Any]:
        """What a run made with this workbench promises to stay the same."""
        basis = self.basis
        confined = {
            name: {"guarantees": skill.guarantees}
            for name, skill in self.skills.items()
            if skill.guarantees
        }
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "seed": self.recipe.seed,
            "models": {
                "base": self.models.base.record(basis.base.checkpoint.content_hash),
                "experts": {
                    name: model.record(expert.content_hash)
                    for (name, model), expert in zip(
                        self.models.experts.items(), basis.experts, strict=True
                    )
                },
            },
            "licence": self.models.licence(),
            "basis": basis.hash,
            "tasks": {
                name: {
                    "task": self.recipe.skills[name].task,
                    **skill.record(),
                    "samples": {split: len(s) for split, s in skill.samples.items()},
                    "fingerprint": skill.fingerprint,
                }
                for name, skill in self.skills.items()
            },
            "engine": self.engine.path,
            "sandbox": {"kind": self.sandbox.kind, "guarantees": self.sandbox.guarantees}
            if self.sandbox
            else None,
            **({"environments": confined} if confined else {}),
            "versions": versions()
            | ({} if self.merges is None else {"mergekit": importlib.metadata.version("mergekit")})
            | _machine(self.engine.path),
        }


@asynccontextmanager
async def open_workbench(
    recipe: Recipe,
    folder: Path,
    *,
    run: Path | None = None,
    expected: str | None = None,
    pins: Mapping[str, str] | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> AsyncIterator[Workbench]:
    """Open all that *recipe* names; relative paths start from *folder*.

    Args:
        run: The run directory that individuals come from, if they come from one.
        pins: Commits of models of the Hub that a run keeps to, see `find_models`.
        expected: Hash of the basis that a run's genomes refer to.
        note: Called with a line for what takes time.

    Raises:
        UserError: Anything wrong with merge method, models, tasks, environments, device or sandbox.
        RunError: A model cannot be had from the Hub now.
    """
    check_crossover(recipe)
    from cqd_hub.evaluation.engine.loading import load_tokenizer

    device = find_device(recipe.evaluation.device)
    dtype = find_dtype(recipe.evaluation.dtype, device)
    check_engine(recipe, device)
    models = find_models(recipe, folder, pins=pins, note=note)
    base, experts = open_found(models, note)
    # What is cheap to refuse is refused before anything is factored.
    tokenizer = load_tokenizer(base.tokenizer)
    skills = load_skills(recipe, folder, tokenizer, note=note)
    async with AsyncExitStack() as stack:
        lent = _LentSandbox(recipe.evaluation, stack)
        for skill in skills.values():
            await skill.open(Resources(recipe.evaluation, lent.sandbox, note))
            stack.push_async_callback(skill.close)
        with models.speaking(note) as told:
            basis = factor(recipe, base, experts, told)
        check_basis(basis, expected, folder)
        fit = check_fit(recipe, basis, skills, device=device, dtype=dtype)
        merges = open_merges(run, recipe) if run is not None else None
        engine = open_engine(
            recipe,
            basis,
            fit.engine,
            device=device,
            dtype=dtype,
            merges=merges,
            note=note,
            weights=fit.weights,
        )
        for skill in skills.values():
            skill.check(engine)
        await stack.enter_async_context(engine)
        evaluator = Evaluator(engine, skills, lent.opened)
        # What is open stays: half a million objects that no collection need walk through.
        gc.freeze()
        stack.callback(gc.unfreeze)
        yield Workbench(recipe, models, basis, skills, merges, engine, lent.opened, evaluator)


class _LentSandbox:
    """A run's one sandbox, opened when somebody first asks for it."""

    def __init__(self, settings: Evaluation, stack: AsyncExitStack) -> None:
        self._settings, self._stack = settings, stack
        self._opening = asyncio.Lock()
        self.opened: Sandbox | None = None

    async def sandbox(self) -> Sandbox:
        async with self._opening:
            if self.opened is None:
                sandbox = await open_sandbox(
                    self._settings.sandbox,
                    workers=self._settings.sandbox_workers,
                    image=self._settings.sandbox_image,
                )
                self.opened = await self._stack.enter_async_context(sandbox)
            return self.opened


def versions() -> dict[str, str]:
    """Versions of ourselves, Python and the libraries that touch a score."""
    found = {"cqd-hub": __version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in _VERSIONED}


def _machine(path: str) -> dict[str, str]:
    """What else changes how sums are rounded."""
    import torch

    if path.endswith("cuda"):
        return {"device": torch.cuda.get_device_name()}
    return {"device": platform.machine(), "threads": str(torch.get_num_threads())}
