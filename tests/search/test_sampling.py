from __future__ import annotations

import numpy as np
import pytest

from cqd_hub.search import Elites, EliteSampling, RandomSampling, elite_probabilities

SCORES = np.array([[0.2, 0.9, 0.4], [0.6, 0.1, 0.4], [0.4, 0.5, 0.4], [0.3, 0.7, 0.4]])
ELITES = Elites(np.array([3, 11, 20, 25]), SCORES)


def test_probabilities_worked_by_hand() -> None:
    # Skill 0 over 0.2..0.6, skill 1 over 0.1..0.9; skill 2 is the same for all and cancels.
    weights = np.array([0.5 * 0.8, 0.8 * 0.5, 0.65 * 0.65, 0.575 * 0.725])
    assert elite_probabilities(SCORES) == pytest.approx(weights / weights.sum())


def test_best_to_worst_odds_are_the_paper_s() -> None:
    odds = elite_probabilities(np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    assert odds[1] / odds[0] == pytest.approx(1.6**3)
    released = elite_probabilities(np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), 0.5, 1.3)
    assert released[1] / released[0] == pytest.approx(17.576)


def test_equal_members_are_equally_likely() -> None:
    assert elite_probabilities(np.full((5, 3), 0.3)).tolist() == [0.2] * 5
    assert elite_probabilities(np.array([[0.1, 0.9]])).tolist() == [1.0]
    assert elite_probabilities(SCORES, 0.7, 0.7) == pytest.approx(np.full(4, 0.25))


def test_many_skills_do_not_underflow() -> None:
    scores = np.random.default_rng(0).random((10, 2000))
    probabilities = elite_probabilities(scores, 0.5, 0.8)
    assert probabilities.sum() == pytest.approx(1.0)
    assert np.all(probabilities > 0)


@pytest.mark.parametrize(
    ("sampling", "first"),
    [
        (EliteSampling(), elite_probabilities(SCORES)),
        (EliteSampling(0.1, 1.0), elite_probabilities(SCORES, 0.1, 1.0)),
        (RandomSampling(), np.full(4, 0.25)),
    ],
)
def test_pairs_are_drawn_as_often_as_the_formula_says(
    sampling: EliteSampling | RandomSampling, first: np.ndarray
) -> None:
    draws = 20_000
    rng = np.random.default_rng(1)
    place = {int(individual): row for row, individual in enumerate(ELITES.individuals)}
    counts = np.zeros((4, 4))
    for _ in range(draws):
        mother, father = sampling.pick(ELITES, rng)
        counts[place[mother], place[father]] += 1
    assert np.all(np.diag(counts) == 0)
    expected = draws * first[:, None] * first[None, :] / (1 - first[:, None])
    off = ~np.eye(4, dtype=bool)
    chi_square = np.sum((counts[off] - expected[off]) ** 2 / expected[off])
    assert chi_square < 31.3  # 99.9 % of chi-square with 11 degrees of freedom.


@pytest.mark.parametrize("sampling", [EliteSampling(), RandomSampling()])
def test_few_elites(sampling: EliteSampling | RandomSampling) -> None:
    rng = np.random.default_rng(0)
    one = Elites(np.array([9]), np.array([[0.1, 0.2]]))
    assert sampling.pick(one, rng) == (9, 9)
    two = Elites(np.array([9, 4]), np.array([[0.1, 0.2], [0.3, 0.1]]))
    assert all(sorted(sampling.pick(two, rng)) == [4, 9] for _ in range(50))
    assert sorted(sampling.pick(two, rng, 4)) == [4, 4, 9, 9]
    with pytest.raises(ValueError, match="empty"):
        sampling.pick(Elites(np.zeros(0), np.zeros((0, 2))), rng)


class LastDraw:
    """A generator whose every draw is the largest there is below 1."""

    def random(self) -> float:
        return 1 - 2**-53


def test_the_largest_draw_takes_the_last_elite_with_weight() -> None:
    for n in range(1, 60):
        elites = Elites(np.arange(n), np.random.default_rng(n).random((n, 3)))
        for sampling in (EliteSampling(), RandomSampling()):
            picked = sampling.pick(elites, LastDraw(), min(n, 2))  # type: ignore[arg-type]
            assert picked == tuple(range(n - 1, n - 1 - min(n, 2), -1))


def test_refuses() -> None:
    for low, high in [(0.0, 0.8), (-0.1, 0.8), (0.8, 0.5), (np.nan, 0.8)]:
        with pytest.raises(ValueError, match="0 < low ≤ high"):
            EliteSampling(low, high)
        with pytest.raises(ValueError, match="0 < low ≤ high"):
            elite_probabilities(SCORES, low, high)
    with pytest.raises(ValueError, match="shape"):
        elite_probabilities(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="shape"):
        elite_probabilities(np.zeros(3))
