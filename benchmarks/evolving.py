"""What benchmarks of whole evolutions share: processor time, children as a run makes them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cqd_hub import assets
from cqd_hub.evaluation.engine import Candidate, Reply
from cqd_hub.evaluation.evaluator import Evaluator
from cqd_hub.evaluation.judging import Verdicts
from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.genome import Basis, Genome
from cqd_hub.recipe import Recipe, load_yaml
from cqd_hub.run.variation import make_child
from cqd_hub.search import Proposal

TICK = os.sysconf("SC_CLK_TCK")


class Spent(NamedTuple):
    """Seconds on the wall, and of processors: this process and all that it has started."""

    wall: float = 0.0
    cpu: float = 0.0

    @classmethod
    def now(cls) -> Spent:
        family, cpu = {os.getpid()}, 0.0
        rows = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            rows.append((int(entry.name), int(fields[1]), sum(map(int, fields[11:15])) / TICK))
        for number, parent, seconds in sorted(rows):
            if number in family or parent in family:
                family.add(number)
                cpu += seconds
        return cls(time.perf_counter(), cpu)

    def __sub__(self, other: object) -> Spent:
        assert isinstance(other, Spent)
        return Spent(self.wall - other.wall, self.cpu - other.cpu)

    def __add__(self, other: object) -> Spent:
        assert isinstance(other, Spent)
        return Spent(self.wall + other.wall, self.cpu + other.cpu)


class Forgetful(Verdicts):
    """Knows no verdict: every answer is executed."""

    def find(self, skill: str, sample: str, text: str) -> None:
        return None


class Watched:
    """An engine, and how many passes its answers took."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.canonical = engine, engine
        self.answers = self.passes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, candidate: Candidate, request: Any) -> asyncio.Future[Reply]:
        future: asyncio.Future[Reply] = self._engine.submit(candidate, request)
        future.add_done_callback(self._count)
        return future

    def _count(self, future: asyncio.Future[Reply]) -> None:
        if not future.cancelled() and future.exception() is None:
            self.answers += 1
            self.passes += future.result().passes


def quickstart(samples: int, b: int) -> tuple[Recipe, Path]:
    """The quickstart's recipe with so many samples per skill and children per step, its folder."""
    folder = assets.folder("recipes")
    recipe = load_yaml(folder / "quickstart.yaml", Recipe)
    limits = recipe.samples.model_copy(update={"optimisation": samples, "validation": 2, "test": 2})
    search = recipe.search.model_copy(update={"children_per_step": b})
    return recipe.model_copy(update={"samples": limits, "search": search}), folder


def founders(basis: Basis) -> list[Candidate]:
    """Base and experts, as a run numbers them."""
    layout = basis.layout
    experts = [Genome.of_expert(basis.hash, layout, n) for n in range(len(layout.experts))]
    return [
        Candidate(number, genome)
        for number, genome in enumerate([Genome.of_base(basis.hash, layout), *experts], -1)
    ]


def child_of(
    proposal: Proposal, genomes: dict[int, Genome], recipe: Recipe, basis: Basis, expert: int
) -> Candidate:
    mother, father = (genomes[parent] for parent in proposal.parents)
    genome, _ = make_child(
        proposal,
        (mother, father),
        variation=recipe.variation,
        basis=basis,
        expert=expert,
        seed=recipe.seed,
    )
    return Candidate(proposal.individual, genome)


async def evaluate(
    evaluator: Evaluator,
    children: Sequence[Candidate],
    parents: Sequence[Sequence[int]] | None,
    *,
    width: int,
) -> list[list[Measurement]]:
    """A generation as a run evaluates it: *width* children under way; *parents* give drafts."""
    gate = asyncio.Semaphore(width)

    async def one(place: int) -> list[Measurement]:
        async with gate:
            evaluation = await evaluator.evaluate(
                children[place], "optimisation", parents=parents[place] if parents else ()
            )
        return evaluation.measurements

    return list(await asyncio.gather(*map(one, range(len(children)))))
