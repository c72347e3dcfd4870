"""Children per minute of whole runs of the quickstart with 1 and 2 workers: processes, and Ray.

    python benchmarks/scaling.py [--children 24] [--samples 60] [--rounds 2]

Short runs by the run's own executors, the same recipe and seed, in turn; from the first child asked
for to the last one told, so that opening models and starting workers and Ray do not count. With one
worker all executors tell the same children. Processor seconds are those of the whole family of
processes: beside the wall time they say how many cores were at work.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import warnings
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from evolving import Spent, quickstart
from transformers.utils import logging as transformers_logging

from cqd_hub.recipe import Recipe
from cqd_hub.run.evolve import evolve
from cqd_hub.run.journal import Journal
from cqd_hub.run.progress import Silent, Stopped

ARMS = (("local", 1), ("processes", 1), ("processes", 2), ("ray", 1), ("ray", 2))


class Clock(Silent):
    """Times the children, and ends the run behind the last one."""

    spent = Spent()

    def phase(self, name: str) -> None:
        if name == "children":
            self._start = Spent.now()
        elif name == "validation":
            self.spent = Spent.now() - self._start
            raise Stopped


def run(recipe: Recipe, folder: Path, executor: str, workers: int) -> tuple[Spent, dict]:  # type: ignore[type-arg]
    """One run: what its children took, and their scores."""
    clock = Clock()
    with tempfile.TemporaryDirectory(prefix="scaling-") as scratch:
        out = Path(scratch) / "run"
        with contextlib.suppress(Stopped):
            asyncio.run(evolve(recipe, folder, out, clock, executor=executor, workers=workers))
        journal = Journal(out)
        scores = journal.scores("optimisation")
        journal.close()
    return clock.spent, scores


def main(children: int, samples: int, rounds: int) -> None:
    recipe, folder = quickstart(samples, 4)
    search = recipe.search.model_copy(update={"children": children})
    recipe = recipe.model_copy(update={"search": search})
    spent: dict[tuple[str, int], list[Spent]] = {arm: [] for arm in ARMS}
    for number in range(rounds):
        alone: list[dict] = []  # type: ignore[type-arg]
        for arm in [*ARMS[number:], *ARMS[:number]]:
            took, scores = run(recipe, folder, *arm)
            spent[arm].append(took)
            alone += [scores] if arm[1] == 1 else []
            print(f"{arm}: {took.wall:.1f} s, {took.cpu:.1f} CPU s", file=sys.stderr, flush=True)
        assert all(scores == alone[0] for scores in alone)  # one worker: whoever it is
    print(
        f"{'executor, workers':20}{'children/min':>13}{'to one':>8}{'CPU s/child':>13}{'cores':>7}"
    )
    for arm, took in spent.items():
        alone_times = [one.wall for one in spent[arm[0], 1]]
        ratio = median(a / t.wall for a, t in zip(alone_times, took, strict=True))
        rate = median(60 * children / one.wall for one in took)
        cores = median(one.cpu / one.wall for one in took)
        cpu = median(one.cpu / children for one in took)
        name = f"{arm[0]}, {arm[1]}"
        print(f"{name:20}{rate:>13.1f}{ratio:>8.2f}{cpu:>13.3f}{cores:>7.2f}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--children", type=int, default=24)
    parser.add_argument("--samples", type=int, default=60, help="per skill")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    main(options.children, options.samples, options.rounds)
