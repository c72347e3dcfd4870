"""Blocks of samples: what is asked, in what order, and what a decision may rest on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.evaluation.stopping import Bounds, Course

SAMPLES = {"x": [f"x{n}" for n in range(40)], "y": [f"y{n}" for n in range(24)]}


def answers(scores: Mapping[tuple[str, str], tuple[float, ...]]) -> list[Measurement]:
    return [
        Measurement(skill, "optimisation", sample, score, "", repeat=repeat)
        for (skill, sample), repeats in scores.items()
        for repeat, score in enumerate(repeats)
    ]


def walk(
    course: Course, scores: Mapping[tuple[str, str], tuple[float, ...]]
) -> list[set[tuple[str, str]]]:
    """Ask until there is no block any more."""
    blocks = []
    while block := course.block():
        blocks.append(block)
        course.note(answers({pair: scores[pair] for pair in block}))
    return blocks


def everything(score: float) -> dict[tuple[str, str], tuple[float, ...]]:
    return {(skill, one): (score,) for skill, many in SAMPLES.items() for one in many}


def test_what_is_never_decided_is_asked_at_once() -> None:
    course = Course(SAMPLES, (), lambda bounds: False)
    (block,) = walk(course, everything(1.0))
    assert block == set(everything(1.0))
    assert course.stopped is None


def test_skill_after_skill_and_first_what_the_parents_get_wrong() -> None:
    weak = {"x0", "x7", "x20"}
    scores = {pair: (float(pair[1] not in weak),) for pair in everything(1.0)}

    def decided(bounds: Bounds) -> bool:
        return bounds["x"][1] <= 37.5 / 40

    course = Course(SAMPLES, answers(scores), decided)
    (block,) = walk(course, scores)
    assert block == {("x", "x0"), ("x", "x7"), ("x", "x20")}
    assert course.stopped == {"x": 3, "y": 0}


def test_a_block_ends_where_the_parents_would_be_decided() -> None:
    def decided(bounds: Bounds) -> bool:
        return bounds["y"][1] <= 0.5  # 12 wrong answers to y, after 40 to x

    course = Course(SAMPLES, answers(everything(0.0)), decided)
    assert [len(block) for block in walk(course, everything(0.0))] == [52]
    assert course.stopped == {"x": 40, "y": 12}
    # A child that is better than its parents is asked on, a few more at a time.
    course = Course(SAMPLES, answers(everything(0.0)), decided)
    blocks = walk(course, everything(0.0) | {("y", one): (1.0,) for one in SAMPLES["y"]})
    assert sum(map(len, blocks)) == 64
    assert len(blocks) <= 4
    assert course.stopped is None


@pytest.mark.parametrize("kind", ["binary", "repeats", "any"])
def test_bounds_hold_the_score_and_close_in_on_it(kind: str) -> None:
    rng = np.random.default_rng(3)

    def drawn() -> tuple[float, ...]:
        if kind == "any":
            return (float(rng.uniform()),)
        return tuple(map(float, rng.integers(0, 2, 3 if kind == "repeats" else 1)))

    scores = {pair: drawn() for pair in everything(0.0)}
    means = {
        skill: np.mean([np.mean(scores[skill, one]) for one in many])
        for skill, many in SAMPLES.items()
    }
    seen: list[Bounds] = []
    course = Course(SAMPLES, (), lambda bounds: bool(seen.append(bounds)))
    while block := course.block():
        course.note(answers({pair: scores[pair] for pair in block}))
        seen.clear()
        course.block()
    # Nothing is open any more: the bounds are the score, to the bit where sums are exact.
    course = Course(SAMPLES, (), lambda bounds: bool(seen.append(bounds)))
    for pair, one in scores.items():
        course.note(answers({pair: one}))
        course._settled(0)
        for skill, (low, high) in seen[-1].items():
            assert low <= means[skill] <= high
    for skill, (low, high) in seen[-1].items():
        if kind == "binary":
            assert low == high == means[skill]
        else:
            assert 0 < high - low < 1e-8
