"""A whole evolution of the quickstart's models: children per minute, from plain to all at once.

    python benchmarks/evolution.py [--children 48] [--samples 150] [--b 8]

Every generation's children are evaluated by each arm in turn, the order turning with the
generation, in this one process; scores are compared sample by sample, then the archives are told
once. Printed per arm: children per minute and processor seconds per child (the sandbox's included)
and their ratios to plain, passes per answer, the share of answers executed. fp32.

plain: one child at a time is written into the resident model, decoded in static batches without
drafts, every answer executed. slots: rows make room for others, and one child is executed while the
next is generated. known: what was judged before is not executed. population: rows of several
children in one batch. drafts: the parents' answers are verified, not written again. The arm that
`evaluation.engine: auto` chooses has a star.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import warnings
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from evolving import Forgetful, Spent, Watched, child_of, evaluate, founders, quickstart
from transformers.utils import logging as transformers_logging

from cqd_hub.evaluation.engine import Candidate
from cqd_hub.evaluation.evaluator import Evaluator
from cqd_hub.evaluation.judging import Verdicts
from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.evaluation.skill import Judged
from cqd_hub.run.archives import make_cycle, vector
from cqd_hub.run.engines import choose_engine, open_engine, work_of
from cqd_hub.run.journal import Individual, Journal, Role
from cqd_hub.run.workbench import Workbench, open_workbench
from cqd_hub.search import skill_experts


@dataclass
class Arm:
    name: str
    kind: str
    static: bool = False
    known: bool = True
    drafts: bool = False
    chosen: bool = False
    spent: Spent = field(default_factory=Spent)
    times: list[float] = field(default_factory=list)
    answers: int = 0
    passes: int = 0
    executed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    async def open(self, bench: Workbench, journal: Journal, stack: AsyncExitStack) -> None:
        settings = bench.recipe.evaluation.model_copy(update={"engine": self.kind})
        recipe = bench.recipe.model_copy(update={"evaluation": settings})
        work = work_of(bench.skills, recipe.search.children_per_step)
        self._engine: Any = open_engine(
            recipe,
            bench.basis,
            choose_engine(recipe, bench.basis.layout, work, "cpu"),
            device="cpu",
            dtype=torch.float32,
            merges=None,
            note=lambda line: None,
        )
        if self.static:
            self._engine._loop._longest = 0  # no row fits a slot: static batches
        await stack.enter_async_context(self._engine)
        self._watched = Watched(self._engine)
        self.evaluator = Evaluator(
            self._watched,  # type: ignore[arg-type]
            bench.skills,
            bench.sandbox,
            Verdicts() if self.known else Forgetful(),
            journal.measurements if self.drafts else lambda individual, split: (),
        )
        self._width = 1 if self.static else self._engine.width

    async def evaluate(
        self, children: list[Candidate], parents: list[tuple[int, ...]]
    ) -> list[list[Measurement]]:
        before = self._watched.answers, self._watched.passes, self.evaluator.executed
        clocks = {**self._engine.seconds, "execute": self.evaluator.execute_seconds}
        start = Spent.now()
        found = await evaluate(
            self.evaluator, children, parents if self.drafts else None, width=self._width
        )
        spent = Spent.now() - start
        self.spent += spent
        self.times.append(spent.wall)
        self.answers += self._watched.answers - before[0]
        self.passes += self._watched.passes - before[1]
        self.executed += self.evaluator.executed - before[2]
        now = {**self._engine.seconds, "execute": self.evaluator.execute_seconds}
        for key, value in now.items():
            self.seconds[key] = self.seconds.get(key, 0.0) + value - clocks[key]
        return found


async def main(children: int, samples: int, b: int) -> None:
    recipe, folder = quickstart(samples, b)
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evolution-")))
        bench = await stack.enter_async_context(open_workbench(recipe, folder))
        journal = Journal(scratch, create=True)
        stack.callback(journal.close)
        chosen = "population" if "population" in bench.engine.path else "sequential"
        arms = [
            Arm("plain", "sequential", static=True, known=False),
            Arm("slots", "sequential", known=False),
            Arm("slots, known", "sequential"),
            Arm("population, known", "population"),
            Arm("slots, known, drafts", "sequential", drafts=True, chosen=chosen == "sequential"),
            Arm(
                "population, known, drafts",
                "population",
                drafts=True,
                chosen=chosen != "sequential",
            ),
        ]
        for arm in arms:
            await arm.open(bench, journal, stack)
        search = await evolve(bench, journal, arms, children, b)
    report(arms, children, search)


async def evolve(
    bench: Workbench, journal: Journal, arms: list[Arm], children: int, b: int
) -> float:
    """Returns processor seconds of asking, making, recording and telling."""
    recipe, basis, table = bench.recipe, bench.basis, []
    genomes = {}
    for one in founders(basis):  # not counted: one arm executes their answers for all
        genomes[one.id] = one.genome
        (found,) = await evaluate(arms[2].evaluator, [one], None, width=1)
        for m in found:
            for arm in arms:
                arm.evaluator.recall(Judged(m.skill, m.sample, m.text, m.finish, m.score, m.note))
        record(journal, one, Role.EXPERT if one.id >= 0 else Role.BASE, found)
        if one.id >= 0:
            table.append(journal.scores_of(one.id, "optimisation"))
    for arm in arms[2:]:  # warm up
        await evaluate(arm.evaluator, founders(basis)[:1], None, width=1)
    cycle = make_cycle(recipe, table)
    experts = skill_experts(np.array([vector(row, recipe) for row in table]))
    for number, row in enumerate(table):
        cycle.tell(number, vector(row, recipe))
    first, search = len(table), 0.0
    for generation in range(-(-children // b)):
        start = Spent.now()
        proposals = cycle.ask(generation, b, first + generation * b)
        made = [child_of(p, genomes, recipe, basis, experts[p.skill]) for p in proposals]
        search += (Spent.now() - start).cpu
        turn = generation % len(arms)
        results = {}
        for arm in [*arms[turn:], *arms[:turn]]:
            results[arm.name] = await arm.evaluate(made, [p.parents for p in proposals])
        agree(results)
        start = Spent.now()
        for child, found in zip(made, results["plain"], strict=True):
            genomes[child.id] = child.genome
            record(journal, child, Role.CHILD, found)
            scores = journal.scores_of(child.id, "optimisation")
            cycle.tell(child.id, vector(scores, recipe))
        journal.tell([child.id for child in made])
        search += (Spent.now() - start).cpu
    return search


def record(journal: Journal, one: Candidate, role: Role, found: list[Measurement]) -> None:
    name = f"{role} {one.id}"
    journal.add(Individual(one.id, role, name, one.genome.to_bytes(), one.genome.hash), found)


def agree(results: dict[str, list[list[Measurement]]]) -> None:
    """Every arm must have given every answer the score that plain gave it."""
    plain = results["plain"]
    for name, found in results.items():
        for mine, theirs in zip(found, plain, strict=True):
            assert {(m.skill, m.sample): m.score for m in mine} == {
                (m.skill, m.sample): m.score for m in theirs
            }, name


def report(arms: list[Arm], children: int, search: float) -> None:
    print(
        f"{'':28}{'children/min':>13}{'ratio':>7}{'CPU s/child':>12}{'ratio':>7}{'passes':>8}"
        f"{'executed':>10}{'generate':>10}{'execute':>9}{'search':>8}"
    )
    plain, count = arms[0], len(arms[0].times)
    for arm in arms:
        made = arm.answers / (plain.answers / children)
        faster = float(np.median(np.divide(plain.times, arm.times)))
        print(
            f"{arm.name + (' *' if arm.chosen else ''):28}{60 * made / arm.spent.wall:>13.1f}"
            f"{faster:>7.2f}{arm.spent.cpu / made:>12.3f}"
            f"{plain.spent.cpu / arm.spent.cpu:>7.2f}{arm.passes / arm.answers:>8.2f}"
            f"{arm.executed / arm.answers:>10.1%}{arm.seconds['generate'] / made:>10.3f}"
            f"{arm.seconds['execute'] / made:>9.3f}{search / (search + arm.spent.cpu):>8.1%}"
        )
    print(f"{children} children in {count} generations; ratios of children/min: median over them")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--children", type=int, default=48)
    parser.add_argument("--samples", type=int, default=150, help="per skill")
    parser.add_argument("--b", type=int, default=8, help="children per step")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    whole = -(-options.children // options.b) * options.b
    asyncio.run(main(whole, options.samples, options.b))
