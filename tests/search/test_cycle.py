from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from cqd_hub.search import (
    Archive,
    Cycle,
    EliteSampling,
    GridArchive,
    NoveltyArchive,
    RandomSampling,
)

BOUNDS = np.array([[0.0, 1.0]] * 3)


def grids(skills: int = 3) -> list[Archive]:
    return [
        GridArchive(skill=k, bounds=np.array([[0.0, 1.0]] * skills), bins=5) for k in range(skills)
    ]


def novelties() -> list[Archive]:
    return [NoveltyArchive(skill=k, capacity=8) for k in range(3)]


def seeded(make: object = grids, seed: int = 7, **options: object) -> Cycle:
    cycle = Cycle(archives=make(), sampling=EliteSampling(), seed=seed, **options)  # type: ignore
    for expert in range(3):
        cycle.tell(expert, 0.2 + 0.6 * np.eye(3)[expert])
    return cycle


def evaluate(individual: int) -> np.ndarray:
    return np.random.default_rng(individual).integers(0, 21, 3) / 20


@pytest.mark.parametrize("make", [grids, novelties])
def test_replaying_what_was_told_gives_the_same_next_children(make: object) -> None:
    cycle, told, parents, first = seeded(make), [], set(), 3
    for generation in range(30):
        replayed = seeded(make)
        for individual, scores in told:
            replayed.tell(individual, scores)
        proposals = cycle.ask(generation, 2, first)
        assert replayed.ask(generation, 2, first) == proposals
        assert cycle.ask(generation, 2, first) == proposals
        for proposal in proposals:
            told.append((proposal.individual, evaluate(proposal.individual)))
            cycle.tell(*told[-1])
        first += 2
        parents |= {proposal.parents for proposal in proposals}
    assert len(parents) > 30


def test_a_child_does_not_depend_on_its_siblings() -> None:
    cycle = seeded()
    together = cycle.ask(4, 3, 10)
    assert [p.individual for p in together] == [10, 11, 12]
    assert together == [cycle.ask(4, 1, first)[0] for first in (10, 11, 12)]


def test_other_seeds_choose_other_parents() -> None:
    def parents(seed: int) -> list[tuple[int, int]]:
        return [proposal.parents for proposal in seeded(seed=seed).ask(0, 20, 3)]

    assert parents(7) == parents(7)
    assert parents(7) != parents(8)


def test_quality_cycles_and_all_children_of_a_generation_share_it() -> None:
    cycle = seeded()
    skills = [{p.skill for p in cycle.ask(generation, 4, 3)} for generation in range(7)]
    assert skills == [{0}, {1}, {2}, {0}, {1}, {2}, {0}]
    fixed = seeded(order=(1,))
    assert [fixed.ask(generation, 1, 3)[0].skill for generation in range(4)] == [1, 1, 1, 1]


def test_parents_come_from_the_active_archive() -> None:
    cycle = seeded()
    # Takes expert 0's cell where skill 0 is the quality, and ties with it elsewhere.
    cycle.tell(3, np.array([1.0, 0.2, 0.2]))
    held = [{elite.individual for elite in archive.elites} for archive in cycle.archives]
    assert held == [{1, 2, 3}, {0, 1, 2}, {0, 1, 2}]
    for generation in range(3):
        seen = {parent for p in cycle.ask(generation, 60, 4) for parent in p.parents}
        assert seen == held[generation]


def test_parents_differ_unless_there_is_one_elite() -> None:
    cycle = Cycle(archives=grids(), sampling=RandomSampling(), seed=0)
    with pytest.raises(ValueError, match="empty"):
        cycle.ask(0, 1, 0)
    cycle.tell(5, np.array([0.5, 0.5, 0.5]))
    assert cycle.ask(0, 1, 6)[0].parents == (5, 5)
    assert all(p.parents[0] != p.parents[1] for p in seeded().ask(0, 50, 3))


def test_everyone_is_offered_to_every_archive() -> None:
    cycle = seeded()
    insertions = cycle.tell(3, np.array([0.9, 0.25, 0.1]))
    assert insertions == (
        ("new", (1, 0), None),
        ("new", (4, 0), None),
        ("rejected", (4, 1), None),
    )
    insertions = cycle.tell(4, np.array([0.8, 0.35, 0.1]))
    assert [insertion.status for insertion in insertions] == ["rejected", "improved", "rejected"]
    assert insertions[1].displaced == 3
    assert [len(archive) for archive in cycle.archives] == [4, 4, 3]


@pytest.mark.parametrize("skills", [2, 5])
def test_any_number_of_skills(skills: int) -> None:
    cycle = Cycle(archives=grids(skills), sampling=EliteSampling(), seed=1)
    for individual in range(6):
        cycle.tell(individual, np.random.default_rng(individual).random(skills))
    assert [cycle.ask(t, 1, 6)[0].skill for t in range(skills + 1)] == [*range(skills), 0]


def test_refused_scores_change_nothing() -> None:
    cycle = seeded()
    before = [archive.summary for archive in cycle.archives]
    for scores in ([0.9, np.nan, 0.9], [0.9, 0.9, 1.1], [0.9, 0.9], [0.9, 0.9, 0.9, 0.9]):
        with pytest.raises(ValueError, match="scores must"):
            cycle.tell(3, np.array(scores))
    with pytest.raises(ValueError, match="individual 2 was told before"):
        cycle.tell(2, np.array([0.9, 0.9, 0.9]))
    assert [archive.summary for archive in cycle.archives] == before
    cycle.tell(3, np.array([0.9, 0.9, 0.9]))


def test_refuses_what_cannot_cycle() -> None:
    sampling = RandomSampling()
    for archives in (grids()[:1], grids()[::-1], grids()[1:]):
        with pytest.raises(ValueError, match="archives must be K ≥ 2"):
            Cycle(archives=archives, sampling=sampling, seed=0)
    with pytest.raises(ValueError, match="score vectors of that length"):
        Cycle(archives=grids()[:2], sampling=sampling, seed=0)
    for order in ((), (3,), (-1,)):
        with pytest.raises(ValueError, match="order"):
            Cycle(archives=grids(), sampling=sampling, seed=0, order=order)
    for arguments in ((-1, 1, 3), (0, 0, 3), (0, 1, -1)):
        with pytest.raises(ValueError, match="must be ≥ 0"):
            seeded().ask(*arguments)


def test_the_search_needs_numpy_only() -> None:
    code = (
        "import sys, cqd_hub.search, cqd_hub.statistics;"
        "print([n for n in ('torch', 'transformers', 'lm_eval', 'datasets', 'scipy', 'ribs')"
        " if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
