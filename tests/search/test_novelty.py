from __future__ import annotations

import numpy as np
import pytest

from cqd_hub.search import NoveltyArchive


def reference(
    members: list[tuple[int, np.ndarray]], skill: int, neighbours: int
) -> dict[int, float]:
    """Competition fitness by the definition; *members* in the order told."""
    fitness = {}
    for place, (individual, scores) in enumerate(members):
        distances = sorted(
            float(np.linalg.norm(np.delete(other, skill) - np.delete(scores, skill)))
            for rank, (_, other) in enumerate(members)
            if other[skill] > scores[skill] or (other[skill] == scores[skill] and rank < place)
        )[:neighbours]
        fitness[individual] = float(np.mean(distances)) if distances else np.inf
    return fitness


@pytest.mark.parametrize("skills", [2, 3, 5])
@pytest.mark.parametrize("levels", [None, 64])
@pytest.mark.parametrize("neighbours", [1, 3])
def test_agrees_with_the_definition(skills: int, levels: int | None, neighbours: int) -> None:
    rng = np.random.default_rng([skills, neighbours])
    scores = rng.random((250, skills))
    if levels:
        # Measures on a line keep distances exact, so ties are real ones on both sides.
        scores = np.round(scores * levels) / levels
        scores[:, 2:] = 0.5
    skill, capacity = 0, 20
    ours = NoveltyArchive(skill=skill, capacity=capacity, neighbours=neighbours)
    members: list[tuple[int, np.ndarray]] = []
    for individual, row in enumerate(scores):
        members.append((individual, row))
        status, displaced = "new", None
        if len(members) > capacity:
            fitness = reference(members, skill, neighbours)
            weakest = min(fitness, key=lambda who: (round(fitness[who], 12), -who))
            members = [member for member in members if member[0] != weakest]
            rejected = weakest == individual
            status, displaced = ("rejected", None) if rejected else ("improved", weakest)
        assert ours.insert(individual, row) == (status, None, displaced)
        assert [elite.individual for elite in ours.elites] == [who for who, _ in members]
    assert len(ours) == capacity
    assert ours.coverage == 1.0


def test_agrees_with_pyribs_where_qualities_differ() -> None:
    ribs = pytest.importorskip("ribs.archives")
    if not hasattr(ribs, "DNSArchive"):
        pytest.skip("this pyribs has no DNSArchive")
    scores = np.random.default_rng(5).random((150, 3))
    theirs = ribs.DNSArchive(solution_dim=1, measure_dim=2, capacity=30, k_neighbors=3)
    ours = NoveltyArchive(skill=2, capacity=30)
    for individual, row in enumerate(scores):
        theirs.add_single([individual], row[2], row[:2])
        ours.insert(individual, row)
        kept = sorted(int(solution[0]) for solution in theirs.data("solution"))
        assert ours.elites.individuals.tolist() == kept
    assert ours.qd_score == pytest.approx(float(theirs.stats.qd_score))


def test_the_best_stays_and_its_copies_go() -> None:
    archive = NoveltyArchive(skill=0, capacity=3)
    for individual in range(20):
        archive.insert(individual, np.array([1.0, 0.5, 0.5]))
    assert archive.elites.individuals.tolist() == [0, 1, 2]
    assert archive.insert(20, np.array([0.4, 0.0, 0.0])) == ("improved", None, 2)
    assert archive.insert(21, np.array([1.0, 0.9, 0.9])) == ("improved", None, 1)
    assert archive.insert(22, np.array([1.0, 0.5, 0.5])).status == "rejected"
    assert archive.elites.individuals.tolist() == [0, 20, 21]
    assert archive.best is not None
    assert archive.best.individual == 21


def test_a_capacity_of_one_holds_the_best() -> None:
    archive = NoveltyArchive(skill=1, capacity=1)
    for individual, quality in enumerate([0.3, 0.2, 0.5, 0.5]):
        archive.insert(individual, np.array([0.1 * individual, quality]))
    assert archive.elites.individuals.tolist() == [2]


def test_interface() -> None:
    archive = NoveltyArchive(skill=1, capacity=4)
    assert archive.skills is None
    assert archive.summary == (None, None, 0.0, 0.0, 0)
    archive.insert(0, np.array([0.1, 0.5]))
    assert archive.skills == 2
    assert archive.cell_of(np.array([0.1, 0.5])) is None
    assert archive.summary == (0.5, 0.5, 0.25, 0.5, 1)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="≥ 1"):
        NoveltyArchive(skill=0, capacity=0)
    with pytest.raises(ValueError, match="≥ 1"):
        NoveltyArchive(skill=0, capacity=1, neighbours=0)
    with pytest.raises(ValueError, match="below K = 2"):
        NoveltyArchive(skill=2, capacity=1).insert(0, np.array([0.1, 0.2]))
    archive = NoveltyArchive(skill=0, capacity=2)
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        archive.insert(0, np.array([0.1, np.nan]))
    assert len(archive) == 0
    archive.insert(0, np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="shape \\(2,\\)"):
        archive.insert(1, np.array([0.1, 0.2, 0.3]))
