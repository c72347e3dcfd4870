"""Individuals side by side in one batch against the same individuals materialised, in fp32."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine import Candidate, Generate, LogLikelihood, Reply, Request
from cqd_hub.evaluation.engine.population import PopulationEngine, unsupported
from cqd_hub.evaluation.engine.sequential import SequentialEngine
from cqd_hub.genome import (
    Basis,
    Genome,
    build_basis,
    crossover,
    mutate_child,
    mutate_expert,
    mutate_gaussian,
    open_models,
)
from cqd_hub.randomness import generator
from tests.conftest import Models
from tests.evaluation.engine.common import inside, passes_of
from tests.genome.families import FAMILIES, adapt, fine_tune, make_model

ALONE = {
    "qwen3_moe": "part of a parameter",
    "mixtral": "part of a parameter",
    "gpt_oss": "has no weights by row|a stack",
    "glm4_moe": "part of a parameter",
    "lfm2": "more than keys and values",
}


def individuals(basis: Basis, count: int, *, core: bool = False) -> list[Candidate]:
    """Base, experts, and children of theirs over several generations."""
    layout = basis.layout
    pool = [Genome.of_expert(basis.hash, layout, n) for n in range(len(basis.experts))]
    found = [Genome.of_base(basis.hash, layout), *pool]
    while len(found) < count:
        rng = generator(0, len(found), "test")
        one, two = rng.choice(len(pool), 2)
        child = crossover([pool[one], pool[two]], rng.uniform(0.2, 0.8, 2), basis)
        expert = int(rng.integers(len(basis.experts)))
        if core:
            child = mutate_child(child, rng, basis=basis, w_max=0.5)
        else:
            child = mutate_expert(child, rng, expert=expert, basis=basis, w_max=0.5)
        pool.append(child)
        found.append(child)
    return [Candidate(number, genome) for number, genome in enumerate(found)]


def requests_of(ids: int, seed: int = 0, count: int = 5) -> list[Request]:
    rng = np.random.default_rng(seed)

    def drawn(longest: int) -> tuple[int, ...]:
        return tuple(rng.integers(3, ids, rng.integers(1, longest)).tolist())

    found: list[Request] = [Generate(drawn(20), int(limit)) for limit in rng.integers(4, 30, count)]
    found.append(Generate(drawn(9), 12, temperature=0.9, seed=3))
    found += [LogLikelihood(drawn(12), drawn(5)) for _ in range(2)]
    return found


def together(engine: Any, people: list[Candidate], requests: list[Request]) -> list[list[Reply]]:
    async def work() -> list[Reply]:
        return await asyncio.gather(*(engine.submit(p, r) for r in requests for p in people))

    replies = inside(engine, work)
    return [replies[number :: len(people)] for number in range(len(people))]


def agree(one: list[list[Reply]], two: list[list[Reply]]) -> None:
    for mine, theirs in zip(one, two, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert (a.tokens, a.text, a.finish, a.greedy) == (b.tokens, b.text, b.finish, b.greedy)
            assert a.log_likelihood == pytest.approx(b.log_likelihood, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_as_it_does_alone(name: str, tmp_path: Path) -> None:
    base = make_model(name, tmp_path / "base")
    tunes = [fine_tune(base, tmp_path / "full", seed=1, dtype=torch.float32)]
    if FAMILIES[name].adapter:
        tunes.append(adapt(base, tmp_path / "lora", seed=2))
    basis = build_basis(*open_models(base, tunes), rank=5)
    if name in ALONE:
        with pytest.raises(UserError, match=ALONE[name]):
            PopulationEngine(basis, device="cpu", dtype=torch.float32)
        return
    engine = PopulationEngine(basis, device="cpu", dtype=torch.float32)
    people, requests = individuals(basis, 6), requests_of(64)
    assert any(any(tails) for tails in basis.layout.tails)
    mixed = together(engine, people, requests)
    assert len({tuple(r.tokens for r in replies) for replies in mixed}) >= 3
    alone = SequentialEngine(basis, device="cpu", dtype=torch.float32)
    agree(mixed, together(alone, people, requests))


@pytest.fixture(scope="module")
def engine(basis: Basis) -> PopulationEngine:
    return PopulationEngine(basis, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def alone(basis: Basis) -> SequentialEngine:
    return SequentialEngine(basis, device="cpu", dtype=torch.float32)


def test_a_lineage_with_cores_answers_as_it_does_alone(
    engine: PopulationEngine, alone: SequentialEngine, basis: Basis
) -> None:
    """`of: child` beside `of: expert`, at full rank and of an adapter."""
    people = individuals(basis, 7, core=True) + individuals(basis, 6)[4:]
    requests = requests_of(190)
    agree(together(engine, people, requests), together(alone, people, requests))


def test_rows_of_many_come_and_go(
    engine: PopulationEngine, alone: SequentialEngine, basis: Basis
) -> None:
    small = PopulationEngine(basis, device="cpu", dtype=torch.float32, batch_tokens=400)
    people, requests = individuals(basis, 24), requests_of(190, seed=1, count=3)
    wanted = together(alone, people, requests)
    with passes_of(small) as seen:
        agree(together(small, people, requests), wanted)
    assert 6 <= max(rows for rows, width in seen if width == 1) <= 60
    with passes_of(engine) as seen:
        agree(together(engine, people, requests), wanted)
    assert max(rows for rows, width in seen if width == 1) > 60


def test_drafts_of_many_are_verified_in_one_batch(
    engine: PopulationEngine, alone: SequentialEngine, basis: Basis
) -> None:
    people = individuals(basis, 8)
    asked = requests_of(190, seed=2, count=8)
    requests = [r for r in asked if isinstance(r, Generate) and not r.temperature]
    answers = together(alone, people, [*requests])
    parents = [answers[3][number].tokens for number in range(len(requests))]
    drafted: list[Request] = [
        replace(request, drafts=(draft,)) for request, draft in zip(requests, parents, strict=True)
    ]
    mixed = together(engine, people, drafted)
    agree(mixed, answers)
    assert {reply.passes for reply in mixed[3]} == {1}
    assert sum(reply.drafted for replies in mixed for reply in replies) > 60


def test_a_nan_individual_spoils_nobody(
    engine: PopulationEngine, alone: SequentialEngine, basis: Basis
) -> None:
    people, requests = individuals(basis, 8), requests_of(190, seed=3)
    wanted = together(alone, people, requests)
    sick = Genome(basis.hash, np.full(basis.layout.size, np.nan, np.float32))
    mixed = together(engine, [*people[:4], Candidate(99, sick), *people[4:]], requests)
    assert {reply.finish for reply in mixed[4]} == {"nan"}
    agree(mixed[:4] + mixed[5:], wanted)
    agree(together(engine, people, requests), wanted)  # in the rows that were theirs


def test_who_cannot_share_goes_alone_and_says_so(
    engine: PopulationEngine, alone: SequentialEngine, basis: Basis
) -> None:
    people = individuals(basis, 5)
    noisy = Candidate(7, mutate_gaussian(people[4].genome, seed=1, deviation=0.01, basis=basis))
    alien = Candidate(8, Genome(basis.hash, np.zeros(3, np.float32)))
    requests = requests_of(190, seed=4)

    async def work() -> list[Any]:
        return await asyncio.gather(
            *(engine.submit(p, r) for r in requests for p in [*people, noisy, alien]),
            *(engine.canonical.submit(people[4], r) for r in requests),
            return_exceptions=True,
        )

    replies = inside(engine, work)
    split = len(requests) * 7
    mixed = [replies[number:split:7] for number in range(7)]
    assert all(isinstance(reply, ValueError) for reply in mixed[6])
    agree([*mixed[:6], replies[split:]], together(alone, [*people, noisy, people[4]], requests))
    assert engine.path == "population/float32/cpu"
    paths = [{reply.path for reply in row} for row in [*mixed[:6], replies[split:]]]
    assert paths == [{""}] * 5 + [{"sequential/float32/cpu"}] * 2
    assert engine.canonical.path == "sequential/float32/cpu"


def test_talks_join_the_batch_as_they_come(
    engine: PopulationEngine, alone: SequentialEngine, basis: Basis
) -> None:
    people = individuals(basis, 9)

    async def talk(one: SequentialEngine, candidate: Candidate) -> list[tuple[int, ...]]:
        prompt, said = (40, 41, 42 + candidate.id), []
        for _ in range(2 + candidate.id % 4):
            reply = await one.submit(candidate, Generate(prompt, 6))
            said.append(reply.tokens)
            prompt = (*prompt, *reply.tokens, 50)
        return said

    async def work(one: SequentialEngine) -> list[list[tuple[int, ...]]]:
        return await asyncio.gather(*(talk(one, candidate) for candidate in people))

    assert inside(engine, lambda: work(engine)) == inside(alone, lambda: work(alone))


def test_half_precision_is_no_farther_from_the_truth(models: Models) -> None:
    """Errors against fp32 of both paths in bfloat16: scores of the two differ by no more."""
    basis = build_basis(*open_models(models.base, [*models.full[:2], models.lora]), rank=8)
    people = individuals(basis, 8)
    rng = np.random.default_rng(0)
    requests: list[Request] = [
        LogLikelihood(tuple(rng.integers(3, 190, 12).tolist()), tuple(rng.integers(3, 190, 3)))
        for _ in range(12)
    ]
    truth, alone, mixed = (
        np.array([[r.log_likelihood for r in row] for row in together(one, people, requests)])
        for one in (
            SequentialEngine(basis, device="cpu", dtype=torch.float32),
            SequentialEngine(basis, device="cpu", dtype=torch.bfloat16),
            PopulationEngine(basis, device="cpu", dtype=torch.bfloat16),
        )
    )
    errors = [float(np.abs(one - truth).mean()) for one in (alone, mixed)]
    assert errors[1] < 1.5 * errors[0]


def test_why_a_model_cannot_is_said_beforehand(basis: Basis, engine: PopulationEngine) -> None:
    alone = SequentialEngine(basis, device="cpu", dtype=torch.float32)
    assert unsupported(alone._model, basis) is None
