from __future__ import annotations

import numpy as np
import pytest

from cqd_hub.search import GridArchive, derive_bounds, skill_experts

UNIT = np.array([[0.0, 1.0]] * 3)


def archive(**options: object) -> GridArchive:
    return GridArchive(**{"skill": 0, "bounds": UNIT, "bins": 10, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("skills", [2, 3, 4])
@pytest.mark.parametrize("levels", [None, 12])
def test_agrees_with_pyribs(skills: int, levels: int | None) -> None:
    ribs = pytest.importorskip("ribs.archives")
    rng = np.random.default_rng(skills)
    scores = rng.random((3000, skills))
    if levels:  # Ratios of small integers: ties and edges everywhere.
        scores = np.round(scores * levels) / levels
    bounds = np.array([[0.1, 0.9], [0.0, 1.0], [0.25, 0.75], [0.3, 0.6]])[:skills]
    bins = [4, 12, 8, 3][:skills]
    for skill in range(skills):
        others = [k for k in range(skills) if k != skill]
        ours = GridArchive(skill=skill, bounds=bounds, bins=bins)
        theirs = ribs.GridArchive(
            solution_dim=1,
            dims=[bins[k] for k in others],
            ranges=[tuple(bounds[k]) for k in others],
        )
        statuses = {0: "rejected", 1: "improved", 2: "new"}
        for individual, row in enumerate(scores):
            told = theirs.add_single([individual], row[skill], row[others])
            assert ours.insert(individual, row).status == statuses[int(told["status"])]
        data = theirs.data()
        cells = [tuple(cell) for cell in theirs.int_to_grid_index(data["index"]).tolist()]
        expected = {
            cell: (int(solution[0]), quality)
            for cell, solution, quality in zip(
                cells, data["solution"], data["objective"], strict=True
            )
        }
        found = {c: (e.individual, e.scores[skill]) for c, e in ours.cells.items()}
        assert found == expected
        assert list(found) == sorted(found)
        assert len(ours) == theirs.stats.num_elites
        assert ours.coverage == pytest.approx(float(theirs.stats.coverage))
        assert ours.qd_score == pytest.approx(float(theirs.stats.qd_score))
        assert ours.best is not None
        assert ours.best.scores[skill] == theirs.stats.obj_max


def test_first_comer_keeps_the_cell_on_a_tie_and_loses_it_to_better() -> None:
    grid = archive()
    assert grid.insert(7, np.array([0.5, 0.31, 0.72])) == ("new", (3, 7), None)
    assert grid.insert(8, np.array([0.5, 0.35, 0.75])) == ("rejected", (3, 7), None)
    assert grid.insert(9, np.array([0.51, 0.35, 0.75])) == ("improved", (3, 7), 7)
    assert [elite.individual for elite in grid.elites] == [9]


def test_edges_belong_to_the_upper_cell_and_outsiders_to_the_outermost() -> None:
    grid = archive(bins=[1, 10, 100])
    # 0.29 * 100 is 28.999999999999996 in floating point.
    assert grid.cell_of(np.array([0.0, 0.3, 0.29])) == (3, 29)
    assert grid.cell_of(np.array([0.0, 1.0, 0.0])) == (9, 0)
    narrow = archive(bounds=np.array([[0, 1], [0.4, 0.6], [0.4, 0.6]]))
    assert narrow.cell_of(np.array([0.0, 0.1, 0.9])) == (0, 9)


def test_only_the_other_scores_place_an_individual() -> None:
    grid = archive(skill=1, bins=[5, 1, 10])
    assert grid.bins == (5, 10)
    assert grid.measures == (0, 2)
    assert grid.cell_of(np.array([0.5, 0.0, 0.5])) == (2, 5)
    assert grid.cell_of(np.array([0.5, 1.0, 0.5])) == (2, 5)


def test_best_is_the_most_recent_of_equals() -> None:
    grid = archive()
    for individual, measure in [(3, 0.9), (1, 0.1), (2, 0.5)]:
        grid.insert(individual, np.array([0.6, measure, measure]))
    assert grid.best is not None
    assert grid.best.individual == 3
    grid.insert(4, np.array([0.7, 0.2, 0.2]))
    assert grid.best.individual == 4


def test_elites_are_ordered_by_individual_whatever_the_order_told() -> None:
    scores = np.random.default_rng(0).random((200, 3))
    forwards, backwards = archive(), archive()
    for individual in range(200):
        forwards.insert(individual, scores[individual])
        backwards.insert(199 - individual, scores[199 - individual])
    assert np.array_equal(forwards.elites.individuals, np.sort(forwards.elites.individuals))
    assert np.array_equal(forwards.elites.individuals, backwards.elites.individuals)
    for elite in forwards.elites:
        assert np.array_equal(elite.scores, scores[elite.individual])


def test_what_was_handed_out_does_not_change_later() -> None:
    grid = archive()
    scores = np.array([0.5, 0.5, 0.5])
    grid.insert(0, scores)
    before, cells = grid.elites, grid.cells
    scores[:] = 0.0
    grid.insert(1, np.array([0.9, 0.5, 0.5]))
    assert [elite.individual for elite in before] == [0]
    assert before[0].scores.tolist() == [0.5, 0.5, 0.5]
    assert cells[5, 5].scores.tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match="read-only"):
        before.scores[0, 0] = 1.0


def test_summary() -> None:
    grid = archive(bins=2)
    assert grid.summary == (None, None, 0.0, 0.0, 0)
    assert grid.best is None
    grid.insert(0, np.array([0.25, 0.0, 0.0]))
    grid.insert(1, np.array([0.75, 1.0, 0.0]))
    assert grid.summary == (0.75, 0.5, 0.5, 1.0, 2)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.1, np.nan, 0.1], "in \\[0, 1\\]"),
        ([0.1, 1.01, 0.1], "in \\[0, 1\\]"),
        ([-0.1, 0.1, 0.1], "in \\[0, 1\\]"),
        ([0.1, np.inf, 0.1], "in \\[0, 1\\]"),
        ([0.1, 0.1], "shape \\(3,\\)"),
        ([[0.1, 0.1, 0.1]], "shape \\(3,\\)"),
    ],
)
def test_refuses_bad_scores(scores: list, message: str) -> None:
    grid = archive()
    with pytest.raises(ValueError, match=message):
        grid.insert(0, np.array(scores))
    with pytest.raises(ValueError, match=message):
        grid.cell_of(np.array(scores))
    assert len(grid) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"skill": 3},
        {"skill": -1},
        {"bounds": np.array([0.0, 1.0])},
        {"bounds": np.array([[0.0, 1.0]])},
        {"bounds": np.array([[0.0, 1.0], [0.5, 0.5], [0.0, 1.0]])},
        {"bounds": np.array([[0.0, 1.0], [np.nan, 1.0], [0.0, 1.0]])},
        {"bins": 0},
        {"bins": [5, 5]},
        {"bins": [5, 5, 0]},
    ],
)
def test_refuses_bad_grids(options: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        archive(**options)


def test_the_bounds_of_the_quality_are_not_used() -> None:
    grid = archive(bounds=np.array([[0.5, 0.5], [0.0, 1.0], [0.0, 1.0]]))
    assert grid.cell_of(np.array([0.9, 0.35, 0.75])) == (3, 7)


def test_derived_bounds() -> None:
    experts = np.array([[0.7, 0.2, 0.0], [0.6, 0.4, 0.0], [0.9, 0.0, 0.0]])
    assert derive_bounds(experts) == pytest.approx(np.array([[0.51, 1.0], [0.0, 0.46], [0.0, 1.0]]))
    assert derive_bounds(experts, clip=False)[0] == pytest.approx([0.51, 1.035])
    assert derive_bounds(np.array([[0.5, 1.0]]), 1.0, 1.0).tolist() == [[0.0, 1.0], [0.0, 1.0]]
    GridArchive(skill=0, bounds=derive_bounds(np.zeros((2, 3))))


@pytest.mark.parametrize(
    ("scores", "factors"),
    [
        ([[0.5, 0.5]], (1.2, 1.1)),
        ([[0.5, 0.5]], (-0.1, 1.1)),
        ([[0.5, np.nan]], (0.85, 1.15)),
        ([[0.5, 1.5]], (0.85, 1.15)),
        ([0.5, 0.5], (0.85, 1.15)),
        (np.zeros((0, 3)), (0.85, 1.15)),
    ],
)
def test_derive_bounds_refuses(scores: list, factors: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        derive_bounds(np.array(scores), *factors)


def test_the_expert_of_a_skill_is_the_best_at_it_and_the_first_of_equals() -> None:
    experts = np.array([[0.2, 0.5, 0.1], [0.9, 0.5, 0.0], [0.3, 0.4, 0.1], [0.1, 0.1, 0.05]])
    assert skill_experts(experts) == (1, 0, 0)


def test_out_of_reach_is_what_every_score_in_between_would_meet() -> None:
    rng = np.random.default_rng(0)
    said = {True: 0, False: 0}
    for _ in range(60):
        grid = archive(bins=4)
        for individual, row in enumerate(np.round(rng.random((40, 3)) * 12) / 12):
            grid.insert(individual, row)
        low = np.round(rng.random(3) * 9) / 12
        high = np.minimum(low + np.round(rng.random(3) * 4) / 12, 1.0)
        steps = [
            np.unique(np.append(np.arange(a, b, 1 / 24), b)) for a, b in zip(low, high, strict=True)
        ]
        between = np.stack(np.meshgrid(*steps), -1).reshape(-1, 3)
        answer = grid.out_of_reach(low, high)
        said[answer] += 1
        rejected = []
        for row in between:
            held = grid.cells.get(grid.cell_of(row))
            rejected.append(held is not None and held.scores[0] >= row[0])
        assert answer == all(rejected)
    assert min(said.values()) > 5


def test_an_empty_cell_or_a_tie_decides_what_is_out_of_reach() -> None:
    grid = archive(bins=2)
    assert not grid.out_of_reach(np.zeros(3), np.zeros(3))
    grid.insert(0, np.array([0.5, 0.1, 0.1]))
    here = np.array([0.5, 0.2, 0.2])
    assert grid.out_of_reach(np.array([0.0, 0.0, 0.0]), here)
    assert not grid.out_of_reach(np.array([0.0, 0.0, 0.0]), here + np.array([0.01, 0, 0]))
    assert not grid.out_of_reach(np.array([0.0, 0.0, 0.0]), here + np.array([0, 0.5, 0]))
