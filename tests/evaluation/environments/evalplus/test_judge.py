from __future__ import annotations

import math
from typing import Any

import pytest

from cqd_hub.evaluation.environments.evalplus.data import task_of
from cqd_hub.evaluation.environments.evalplus.judge import judge_of
from cqd_hub.evaluation.sandbox import to_json

from .common import BY_ENTRY, DOUBLE


def right(entry: str, value: Any, expected: Any, *arguments: Any) -> bool:
    task = task_of(BY_ENTRY[entry])
    given = [to_json(item) for item in arguments]
    return judge_of(task).right(to_json(value), to_json(expected), given, task.tolerance)


@pytest.mark.parametrize(
    ("value", "expected", "verdict"),
    [
        (1, 1.0, True),  # equal in Python
        (True, 1, True),
        ((1, 2), [1, 2], False),
        ({1, 2}, {2, 1}, True),
        (0.1 + 0.2, 0.3, True),
        (0.300001, 0.3, True),
        (0.30001, 0.3, False),
        (1, 1.0000001, False),  # not of the same type
        ([0.1 + 0.2, 1.0], [0.3, 1.0], True),
        ((0.3000001,), [0.3], False),
        ([0.3], [0.3, 0.3], False),
        ([0.1 + 0.2, 1], [0.3, 1], False),  # not all floats: equality
        (math.nan, math.nan, False),
        (math.inf, math.inf, True),
        (-math.inf, math.inf, False),
        ("1.0", 1.0, False),
        ([], [], True),
    ],
)
def test_values(value: Any, expected: Any, verdict: bool) -> None:
    assert right("double", value, expected) is verdict


def test_a_task_may_tolerate_more() -> None:
    assert right("mean", 1.509, 1.5)
    assert right("mean", [1, [2 + 1j]], [1.001, [2 + 1.001j]])
    assert not right("mean", 1.52, 1.5)
    assert not right("mean", 1, 1.001)
    assert not right("mean", ["a"], [1.0])


def test_formula_oracles() -> None:
    assert right("are_equivalent", "anything", True, 1, 2)
    assert right("sum_div", 0, 6, 6)
    assert not right("sum_div", 1, 6, 6)
    assert right("surface_Area", 96, 84, 6, 4)  # by the pyramid's height
    assert not right("surface_Area", "96", 84, 6, 4)
    assert not right("surface_Area", math.nan, 84, 6, 4)
    assert right("digit_distance_nums", 6, 4, 5, 10)  # 05 and 10
    assert not right("digit_distance_nums", 7, 4, 5, 10)
    assert right("find_zero", 2.0, 1.0, [-6, 11, -6, 1])  # another root
    assert not right("find_zero", 2.5, 2.5, [-6, 11, -6, 1])
    assert not right("find_zero", "2", 1.0, [-6, 11, -6, 1])
    assert not right("find_zero", 1e200, 1.0, [-6, 11, -6, 1])


def test_an_oracle_belongs_to_its_data_set() -> None:
    other = task_of({**BY_ENTRY["sum_div"], "task_id": "HumanEval/295"})
    assert not judge_of(other).right(0, 6, [6], 0)


def test_values_that_cannot_be_compared_are_wrong() -> None:
    deep: Any = []
    for _ in range(600):
        deep = [deep]
    judge = judge_of(task_of(DOUBLE))
    for value in (deep, {"__complex__": 3}, {"__set__": [[1]]}, {"__bytes__": "zz"}):
        assert judge.right(value, 1, [], 0) is False
    assert judge.right(10**400, 1.5, [], 0.1) is False
