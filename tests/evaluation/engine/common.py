"""Shared by the engines' tests: individuals of the tiny models, and ways to ask them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from cqd_hub.evaluation.engine import Candidate, Reply, Request
from cqd_hub.evaluation.engine.sequential import SequentialEngine
from cqd_hub.genome import Basis, Genome, Materialiser

PROMPTS = (
    "the quick brown fox",
    "question: what is",
    "def add(a, b):",
    "SELECT name FROM pets WHERE age > 3; and then it sleeps under the lazy dog",
    "c",
    "é¥🙂 ",
)


def make(basis: Basis, **options: Any) -> SequentialEngine:
    return SequentialEngine(basis, device="cpu", dtype=torch.float32, **options)


def candidates(basis: Basis) -> list[Candidate]:
    """Base, the three experts, and a blend."""
    layout = basis.layout
    genomes = [Genome.of_base(basis.hash, layout)]
    genomes += [Genome.of_expert(basis.hash, layout, number) for number in range(3)]
    blend = np.random.default_rng(0).uniform(0, 0.6, layout.size).astype(np.float32)
    genomes.append(Genome(basis.hash, blend))
    return [Candidate(number, genome) for number, genome in enumerate(genomes)]


def reference(basis: Basis, candidate: Candidate) -> Any:
    """The same individual as a plain transformers model."""
    model = AutoModelForCausalLM.from_pretrained(basis.base.checkpoint.path).eval()
    model.load_state_dict(
        Materialiser(basis).state(candidate.genome, dtype=torch.float32), strict=False
    )
    return model


def ask(
    engine: SequentialEngine,
    candidate: Candidate,
    requests: list[Request],
    *,
    together: bool = True,
) -> list[Reply]:
    async def work() -> list[Reply]:
        async with engine:
            if together:
                return await asyncio.gather(*(engine.submit(candidate, r) for r in requests))
            return [await engine.submit(candidate, request) for request in requests]

    return asyncio.run(work())


def inside(engine: SequentialEngine, work: Callable[[], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        async with engine:
            return await asyncio.wait_for(work(), 120)

    return asyncio.run(go())


@contextmanager
def passes_of(engine: Any) -> Iterator[list[tuple[int, int]]]:
    """(rows, width) of every forward pass of an engine's model."""
    seen: list[tuple[int, int]] = []

    def note(module: Any, arguments: Any, options: dict[str, Any]) -> None:
        seen.append(tuple(options["input_ids"].shape))

    hook = engine._model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()
