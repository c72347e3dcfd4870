from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cqd_hub.statistics import (
    Interval,
    _student_quantile,
    average_interval,
    mean_interval,
    paired_difference,
)


def binary(successes: int, n: int) -> np.ndarray:
    return np.repeat([1.0, 0.0], [successes, n - successes])


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857, Table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_limits(successes: int, n: int, low: float, high: float) -> None:
    interval = mean_interval(binary(successes, n))
    assert interval.mean == pytest.approx(successes / n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
    assert interval.n == n
    mirrored = mean_interval(binary(n - successes, n))
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((low, high), abs=5e-5)


def test_equal_scores_are_not_certain() -> None:
    half = mean_interval(np.full(50, 0.5))
    assert half == mean_interval(binary(25, 50))
    assert half.high - half.low > 0.2
    # Neither a variance that is rounding noise nor one that underflows is taken for precision.
    assert np.full(12, 0.1).var() > 0
    assert mean_interval(np.full(12, 0.1)).high > 0.3
    assert mean_interval(np.array([0.0, 1e-200])).high > 0.5
    one = mean_interval(np.array([0.7]))
    assert one.low < 0.3
    assert one.high > 0.9
    assert mean_interval(np.ones(30)) == Interval(1.0, pytest.approx(0.8865, abs=1e-4), 1.0, 30)


def test_scores_between_are_surer_than_0_or_1() -> None:
    rng = np.random.default_rng(0)
    narrow = mean_interval(0.4 + 0.2 * rng.random(40))
    assert narrow.high - narrow.low == pytest.approx(2 * 2.02 * 0.2 / np.sqrt(12 * 40), rel=0.2)
    wide = mean_interval(binary(20, 40))
    nearly = mean_interval(np.clip(binary(20, 40), 1e-9, 1))
    assert (nearly.low, nearly.high) == pytest.approx((wide.low, wide.high), abs=0.01)


def test_higher_confidence_is_wider() -> None:
    scores = np.random.default_rng(0).random(30)
    widths = [i.high - i.low for i in (mean_interval(scores, c) for c in (0.5, 0.9, 0.95, 0.99))]
    assert widths == sorted(widths)


def test_average_adds_variances_over_k_squared() -> None:
    skills = [binary(200, 400), binary(200, 400), binary(200, 400)]
    one, three = mean_interval(skills[0]), average_interval(skills)
    assert three.mean == pytest.approx(0.5)
    assert three.high - 0.5 == pytest.approx((one.high - 0.5) / np.sqrt(3))
    assert three.n == 1200
    assert average_interval(skills[:1]) == one
    # Unweighted over skills, whatever their numbers of samples.
    assert average_interval([binary(10, 10), binary(0, 1000)]).mean == 0.5


def test_average_of_the_paper_s_table_has_the_notes_standard_error() -> None:
    # CycleQD on MBPP, DB, OS with 199, 170 and 54 test samples.
    interval = average_interval([binary(152, 199), binary(65, 170), binary(23, 54)])
    assert interval.mean == pytest.approx(0.524, abs=0.001)
    assert (interval.high - interval.low) / 2 / 1.96 == pytest.approx(0.0275, abs=0.001)


def test_average_stays_inside_and_is_never_certain() -> None:
    perfect = average_interval([np.ones(20), np.ones(20)])
    assert perfect.high == 1.0
    assert 0.85 < perfect.low < 0.95
    assert average_interval([np.zeros(5), np.zeros(5)]).low == 0.0


def test_pairing_worked_by_hand() -> None:
    # 20 samples, 5 won and 1 lost: (5-1)/22, variance ((8)/22 - (4/22)^2)/22.
    a, b = binary(5, 20), np.roll(binary(1, 20), 10)
    interval = paired_difference([a], [b])
    half = 1.959964 * np.sqrt((8 / 22 - (4 / 22) ** 2) / 22)
    assert interval == pytest.approx((0.2, 4 / 22 - half, 4 / 22 + half, 20))
    twice = paired_difference([a, a], [b, b])
    assert twice.high - twice.low == pytest.approx(2 * half / np.sqrt(2))
    swapped = paired_difference([b], [a])
    assert swapped[:3] == pytest.approx((-0.2, -interval.high, -interval.low))


def test_pairing_is_sharper_than_two_intervals() -> None:
    rng = np.random.default_rng(3)
    b = (rng.random(200) < 0.5).astype(float)
    a = b.copy()
    a[:12] = 1.0
    difference = paired_difference([a, a], [b, b])
    alone = average_interval([a, a])
    assert difference.high - difference.low < (alone.high - alone.low) / 2
    assert difference.n == 400


def test_equal_answers_are_not_exactly_equal_individuals() -> None:
    interval = paired_difference([binary(100, 200)], [binary(100, 200)])
    assert interval.mean == 0.0
    assert interval.high == -interval.low == pytest.approx(0.01372, abs=1e-4)
    certain = paired_difference([np.ones(4)], [np.zeros(4)])
    assert certain.high == 1.0
    assert 0 < certain.low < certain.mean


def beta(rng: np.random.Generator, n: int) -> tuple[np.ndarray, float]:
    return rng.beta(0.5, 1.5, n), 0.25


def coin(rng: np.random.Generator, n: int) -> tuple[np.ndarray, float]:
    # At one fixed rate the coverage of any interval for 0/1 scores depends on the rate's luck.
    rate = rng.random()
    return (rng.random(n) < rate).astype(float), rate


def partial(rng: np.random.Generator, n: int) -> tuple[np.ndarray, float]:
    return rng.choice([0.0, 0.5, 1.0], n, p=[0.5, 0.2, 0.3]), 0.4


@pytest.mark.parametrize("draw", [beta, coin, partial])
@pytest.mark.parametrize("n", [15, 60])
def test_the_interval_of_a_mean_covers_it_as_often_as_it_says(draw: Callable, n: int) -> None:
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(2000):
        scores, truth = draw(rng, n)
        interval = mean_interval(scores)
        hits += interval.low <= truth <= interval.high
    assert 0.93 < hits / 2000 < 0.98


def test_the_interval_of_an_average_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(2000):
        parts = [draw(rng, n) for draw, n in ((beta, 40), (coin, 54), (partial, 30))]
        interval = average_interval([scores for scores, _ in parts])
        hits += interval.low <= sum(truth for _, truth in parts) / 3 <= interval.high
    assert 0.935 < hits / 2000 < 0.975


@pytest.mark.parametrize(("win", "lose"), [(0.1, 0.1), (0.15, 0.05), (0.02, 0.01)])
def test_the_interval_of_a_difference_covers_it_as_often_as_it_says(
    win: float, lose: float
) -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(2000):
        a, b = [], []
        for n in (30, 60, 100):
            outcome = rng.choice([1.0, -1.0, 0.0], n, p=[win, lose, 1 - win - lose])
            a.append(np.where(outcome == 1, 1.0, 0.0))
            b.append(np.where(outcome == -1, 1.0, 0.0))
        interval = paired_difference(a, b)
        hits += interval.low <= win - lose <= interval.high
    assert hits / 2000 > 0.935


@pytest.mark.parametrize(
    ("confidence", "freedom", "published"),
    [
        (0.95, 1, 12.7062),
        (0.95, 2, 4.3027),
        (0.95, 3, 3.1824),
        (0.95, 5, 2.5706),
        (0.95, 10, 2.2281),
        (0.95, 30, 2.0423),
        (0.90, 4, 2.1318),
        (0.99, 3, 5.8409),
        (0.99, 20, 2.8453),
    ],
)
def test_student_quantile(confidence: float, freedom: int, published: float) -> None:
    assert _student_quantile(confidence, freedom) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    "scores",
    [[], [[0.0, 1.0]], 0.5, [0.1, np.nan], [0.1, 1.1], [-0.1, 0.1]],
)
def test_refuses_bad_scores(scores: list) -> None:
    array = np.array(scores, dtype=float)
    with pytest.raises(ValueError, match="scores must"):
        mean_interval(array)
    with pytest.raises(ValueError, match="scores must"):
        average_interval([array])
    with pytest.raises(ValueError, match="scores must"):
        paired_difference([array], [array])


def test_refuses_bad_questions() -> None:
    for confidence in (0.0, 1.0, 95.0, np.nan):
        with pytest.raises(ValueError, match="confidence"):
            mean_interval(np.array([0.0, 1.0]), confidence)
    with pytest.raises(ValueError, match="at least one skill"):
        average_interval([])
    with pytest.raises(ValueError, match="same skills"):
        paired_difference([np.ones(2)], [])
    with pytest.raises(ValueError, match="same samples"):
        paired_difference([np.ones(2)], [np.ones(3)])
