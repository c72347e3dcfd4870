"""How the cost of a child of the quickstart grows: samples, children in flight, skills, archives.

    python benchmarks/growth.py [--rounds 3]

Evaluation: processor seconds per child (the sandbox's included) for growing numbers of samples per
skill and of children in flight, on both engines, with drafts and known answers; the children of
the shipped experts, their parents' answers given. All combinations take turns. The search, with
made-up scores: one `Cycle.ask` and one `Cycle.tell` for K = 2 … 5 and up to 10,000 elites in every
archive, as wall milliseconds and as a share of what a child of the quickstart costs above.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import warnings
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from evolution import Arm, record
from evolving import child_of, evaluate, founders, quickstart
from search import grids, novelties, turns
from transformers.utils import logging as transformers_logging

from cqd_hub.evaluation.skill import Judged
from cqd_hub.run.journal import Journal, Role
from cqd_hub.run.workbench import Workbench, open_workbench
from cqd_hub.search import Proposal

SAMPLES = (10, 40, 150)
FLIGHT = (1, 2, 4, 8, 16)
SKILLS = (2, 3, 4, 5)
SIZES = (100, 1_000, 10_000)


async def evaluation(rounds: int) -> float:
    """Print the first table; returns the seconds of a child of the quickstart's own size."""
    recipe, folder = quickstart(max(SAMPLES), max(FLIGHT))
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="growth-")))
        bench = await stack.enter_async_context(open_workbench(recipe, folder))
        journal = Journal(scratch, create=True)
        stack.callback(journal.close)
        engines = {kind: Arm(kind, kind, drafts=True) for kind in ("sequential", "population")}
        for arm in engines.values():
            await arm.open(bench, journal, stack)
        genomes = {}
        for one in founders(bench.basis):
            genomes[one.id] = one.genome
            (found,) = await evaluate(engines["sequential"].evaluator, [one], None, width=1)
            record(journal, one, Role.EXPERT if one.id >= 0 else Role.BASE, found)
            for m in found:
                engines["population"].evaluator.recall(
                    Judged(m.skill, m.sample, m.text, m.finish, m.score, m.note)
                )
        return await grow(bench, engines, genomes, rounds)


async def grow(bench: Workbench, engines: dict[str, Arm], genomes: dict, rounds: int) -> float:  # type: ignore[type-arg]
    whole = {name: skill.samples["optimisation"] for name, skill in bench.skills.items()}
    spent: dict[tuple[str, int, int], list[float]] = {}
    number = 3
    for _ in range(rounds):
        for samples in SAMPLES:
            for name, skill in bench.skills.items():
                skill.samples["optimisation"] = whole[name][:samples]  # type: ignore[index]
            for flight in FLIGHT:
                for kind, arm in engines.items():
                    if flight * samples > 600 or (kind == "sequential" and flight > 2):
                        continue  # one after the other: two are under way at most
                    pairs = [((n + 1) % 3, n % 3) for n in range(number, number + flight)]
                    proposals = [
                        Proposal(number + n, 0, n % 3, pair) for n, pair in enumerate(pairs)
                    ]
                    number += flight
                    made = [child_of(p, genomes, bench.recipe, bench.basis, 0) for p in proposals]
                    arm._width, before = flight, arm.spent
                    await arm.evaluate(made, pairs)
                    cost = (arm.spent - before).cpu / flight
                    spent.setdefault((kind, samples, flight), []).append(cost)
    print(f"{'CPU seconds per child':32}" + "".join(f"{n:>8}" for n in SAMPLES) + "  samples")
    for kind in engines:
        for flight in FLIGHT:
            row = [spent.get((kind, samples, flight)) for samples in SAMPLES]
            if any(row):
                cells = "".join(f"{median(one):>8.3f}" if one else f"{'':8}" for one in row)
                print(f"{f'{kind}, {flight} in flight':32}{cells}", flush=True)
    return median(spent["sequential", max(SAMPLES), 2])


def search(child: float) -> None:
    print(f"\n{'ask + tell, ms':20}" + "".join(f"{n:>18,}" for n in SIZES) + "  elites per archive")
    for make in (grids, novelties):
        for skills in SKILLS:
            cells = []
            for size in SIZES:
                cost = turns(make, size, skills)
                turn = cost["ask"] + cost["tell"]
                cells.append(f"{1e3 * turn:>9.3f} ({turn / child:6.2%})")
            print(
                f"{make.__name__}, K = {skills:<9}" + "".join(f"{c:>18}" for c in cells), flush=True
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    search(asyncio.run(evaluation(options.rounds)))
