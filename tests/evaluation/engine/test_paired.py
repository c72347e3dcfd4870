"""In bfloat16 two engines' answers differ; their scores must not, beyond noise."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from benchmarks.speculation import OPERATORS, make
from cqd_hub import assets
from cqd_hub.evaluation.engine import Candidate
from cqd_hub.evaluation.engine.population import PopulationEngine
from cqd_hub.evaluation.engine.sequential import SequentialEngine
from cqd_hub.evaluation.evaluator import Evaluation, Evaluator
from cqd_hub.evaluation.judging import Verdicts
from cqd_hub.evaluation.sandbox import Sandbox, available, open_sandbox
from cqd_hub.evaluation.skill import Skill
from cqd_hub.evaluation.skills import load_skills
from cqd_hub.genome import Basis, Genome, build_basis, open_models
from cqd_hub.randomness import generator
from cqd_hub.recipe import Recipe, load_yaml
from cqd_hub.statistics import Interval, paired_difference

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not any(state.ok for state in available() if state.kind != "docker"),
        reason="no sandbox works here",
    ),
]

CHILDREN = 6
SKILLS = ("coding", "os", "db")
Scores = np.ndarray  # (children, skills, samples)


def children(basis: Basis) -> list[Genome]:
    """Two generations of the shipped experts by the paper's operators."""
    pool = [Genome.of_expert(basis.hash, basis.layout, number) for number in range(3)]
    for number in range(CHILDREN):
        rng = generator(0, number, "paired")
        mother, father = rng.choice(len(pool), 2, replace=False)
        operator = OPERATORS[number % len(OPERATORS)]
        pool.append(make(basis, (pool[mother], pool[father]), operator, 0.3, rng))
    return pool[3:]


async def measure(
    engine: SequentialEngine,
    genomes: Sequence[Genome],
    skills: dict[str, Skill],
    sandbox: Sandbox,
    verdicts: Verdicts,
) -> Scores:
    """Everybody's scores, all under way together."""
    evaluator = Evaluator(engine, skills, sandbox, verdicts)
    async with engine:
        found = await asyncio.gather(
            *(
                evaluator.evaluate(Candidate(number, genome), "optimisation")
                for number, genome in enumerate(genomes)
            )
        )
    paths = {one.path for evaluation in found for one in evaluation.measurements}
    assert paths == {f"{engine.path}+{sandbox.kind}"}
    return np.array([by_skill(evaluation, skills) for evaluation in found])


def by_skill(evaluation: Evaluation, skills: dict[str, Skill]) -> list[list[float]]:
    scores = {(one.skill, one.sample): one.score for one in evaluation.measurements}
    return [
        [scores[name, sample.id] for sample in skills[name].samples["optimisation"]]
        for name in SKILLS
    ]


def everybody(one: Scores, other: Scores) -> Interval:
    """The mean difference; one problem's children are not independent: averaged first."""
    return paired_difference(list(one.mean(0)), list(other.mean(0)))


def apart(one: Scores, other: Scores) -> list[tuple[int, str, Interval]]:
    """The children and skills whose scores differ; of them all, 5 % by chance."""
    confidence = 1 - 0.05 / (len(one) * len(SKILLS))
    return [
        (child, skill, difference)
        for child in range(len(one))
        for place, skill in enumerate(SKILLS)
        if not holds(
            difference := paired_difference([one[child, place]], [other[child, place]], confidence)
        )
    ]


def holds(difference: Interval) -> bool:
    return difference.low <= 0 <= difference.high


def test_scores_are_the_same_beyond_noise() -> None:
    recipes = assets.folder("recipes")
    folder = recipes / "quickstart" / "models"
    basis = build_basis(*open_models(folder / "base", [folder / name for name in SKILLS]))
    genomes = children(basis)
    alone = SequentialEngine(basis, device="cpu", dtype=torch.bfloat16)
    together = PopulationEngine(basis, device="cpu", dtype=torch.bfloat16)
    skills = load_skills(load_yaml(recipes / "quickstart.yaml", Recipe), recipes, alone.tokenizer)

    async def work() -> list[Scores]:
        verdicts = Verdicts()  # shared: a text that both say has one verdict
        async with await open_sandbox() as sandbox:
            return [
                await measure(engine, people, skills, sandbox, verdicts)
                for engine, people in (
                    (alone, genomes),
                    (together, genomes),
                    (together, [*genomes[1:], genomes[0]]),
                )
            ]

    sequential, population, permuted = asyncio.run(work())
    assert sequential.shape == population.shape == (CHILDREN, len(SKILLS), 150)
    difference = everybody(population, sequential)
    found = apart(permuted, sequential)
    print(
        f"\n{CHILDREN} children, {difference.n} samples: population {population.mean():.3f}, "
        f"sequential {sequential.mean():.3f}, difference {difference.mean:+.4f} "
        f"[{difference.low:+.4f}, {difference.high:+.4f}]; "
        f"{np.mean(sequential != population):.2%} of the scores differ; "
        f"permuted: {len(found)} of {CHILDREN * len(SKILLS)} apart"
    )
    assert 0.1 < sequential.mean() < 0.9  # scores that can differ
    assert holds(difference)
    assert apart(population, sequential) == []
    # With each other's genomes they are apart, though the mean over all children stays the same.
    assert found
