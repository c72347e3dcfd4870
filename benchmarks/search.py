"""What one turn of the search costs, against the size of the active archive.

    python benchmarks/search.py

A turn is one `Cycle.ask` for one child and one `Cycle.tell` of its scores to all K archives. All
else that a child costs, which is seconds, is not measured. The unit is a fixed numpy workload,
sorting 100,000 numbers, run in turn with what is measured, so that figures from different machines
and moments compare. Prints one JSON line per row; medians.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np

from cqd_hub.search import Archive, Cycle, EliteSampling, GridArchive, NoveltyArchive

SKILLS = 4
SIZES = (100, 1_000, 10_000)
TURNS = 100


def grids(size: int, skills: int) -> list[Archive]:
    # Three times as many cells as elites, so that turns fill, improve and miss.
    bins = int(np.ceil((3 * size) ** (1 / (skills - 1))))
    bounds = np.tile([0.0, 1.0], (skills, 1))
    return [GridArchive(skill=skill, bounds=bounds, bins=bins) for skill in range(skills)]


def novelties(size: int, skills: int) -> list[Archive]:
    return [NoveltyArchive(skill=skill, capacity=size) for skill in range(skills)]


def turns(
    make: Callable[[int, int], list[Archive]], size: int, skills: int = SKILLS
) -> dict[str, float]:
    rng = np.random.default_rng(0)
    cycle = Cycle(archives=make(size, skills), sampling=EliteSampling(), seed=0)
    individual = 0
    while min(len(archive) for archive in cycle.archives) < size:
        cycle.tell(individual, rng.random(skills))
        individual += 1
    numbers = rng.random(100_000)
    seconds: dict[str, list[float]] = {"unit": [], "ask": [], "tell": []}
    for turn in range(TURNS):
        scores = rng.random(skills)
        start = time.perf_counter()
        np.sort(numbers)
        sorted_at = time.perf_counter()
        cycle.ask(turn, 1, individual)
        asked_at = time.perf_counter()
        cycle.tell(individual, scores)
        told_at = time.perf_counter()
        individual += 1
        seconds["unit"].append(sorted_at - start)
        seconds["ask"].append(asked_at - sorted_at)
        seconds["tell"].append(told_at - asked_at)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def main() -> None:
    for make in (grids, novelties):
        for size in SIZES:
            median = turns(make, size)
            turn = median["ask"] + median["tell"]
            print(
                json.dumps(
                    {
                        "archives": make.__name__,
                        "skills": SKILLS,
                        "elites": size,
                        "turn_over_sort": round(turn / median["unit"], 2),
                        "ask_ms": round(1e3 * median["ask"], 3),
                        "tell_ms": round(1e3 * median["tell"], 3),
                        "sort_ms": round(1e3 * median["unit"], 3),
                    }
                )
            )


if __name__ == "__main__":
    main()
