"""A recipe over the toy environments, and an evaluator that plays it with a real model."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from ruamel.yaml import YAML

from cqd_hub.evaluation.engine import Candidate
from cqd_hub.evaluation.engine.sequential import SequentialEngine
from cqd_hub.evaluation.episodes import Resources
from cqd_hub.evaluation.evaluator import Evaluator
from cqd_hub.evaluation.skills import load_skills
from cqd_hub.genome import Basis, Genome
from cqd_hub.recipe import Recipe
from cqd_hub.recipe.schema import Evaluation

T = TypeVar("T")


def manifest(folder: Path, kind: str = "Letters", name: str = "letters", **more: Any) -> Path:
    """A manifest of a toy environment, which lies beside it; `log.txt` says what happens."""
    shutil.copy(Path(__file__).with_name("toy.py"), folder / "toy.py")
    options = {"log": str(folder / "log.txt"), **more.pop("options", {})}
    data = {
        "environment": f"toy.py:{kind}",
        "options": options,
        "format": "plain",
        "max_new_tokens": 8,
        **more,
    }
    path = folder / f"{name}.yaml"
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    with path.open("w") as file:
        yaml.dump(data, file)
    return path


def recipe(**skill: Any) -> Recipe:
    """A recipe whose first skill is the manifest `letters.yaml`; only that is ever loaded."""
    data = {
        "name": "r",
        "base": "b",
        "experts": {"x": "x", "y": "y"},
        "tasks": ["."],
        "skills": {"one": {"task": "letters", **skill}, "two": {"task": "letters"}},
    }
    return Recipe.model_validate(data)


def play(
    folder: Path,
    basis: Basis,
    work: Callable[[Evaluator, list[Candidate]], Awaitable[T]],
    *,
    notes: list[str] | None = None,
    tokenizer: Callable[[Any], None] = lambda tokenizer: None,
    engine: SequentialEngine | None = None,
    **skill: Any,
) -> T:
    """Let *work* use an evaluator over a base and three experts; its skills are `one` and `two`."""

    async def sandbox() -> Any:
        raise AssertionError("nothing here needs a sandbox")

    async def go() -> T:
        opened = engine or SequentialEngine(basis, device="cpu", dtype=torch.float32)
        tokenizer(opened.tokenizer)
        note = (notes if notes is not None else []).append
        skills = load_skills(recipe(**skill), folder, opened.tokenizer, note=note)
        for one in skills.values():
            await one.open(Resources(Evaluation(), sandbox, note))
            one.check(opened)
        genomes = [Genome.of_base(basis.hash, basis.layout)]
        genomes += [Genome.of_expert(basis.hash, basis.layout, n) for n in range(3)]
        candidates = [Candidate(n, genome) for n, genome in enumerate(genomes)]
        try:
            async with opened:
                return await work(Evaluator(opened, skills, None), candidates)
        finally:
            for one in skills.values():
                await one.close()

    return asyncio.run(go())


def log(folder: Path, word: str = "") -> list[str]:
    """What the environments did, in order."""
    path = folder / "log.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if line.startswith(word)]
