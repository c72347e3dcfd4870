"""Judging what needs nothing of the machine, so that no agent reaches it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cqd_hub.evaluation.environments.agentbench_os.dialects import DIALECTS
from cqd_hub.evaluation.environments.agentbench_os.judge import Judgement, judge
from cqd_hub.evaluation.environments.agentbench_os.problem import Problem
from cqd_hub.evaluation.machines import Machine, Ran

INTEGER = "from sys import argv\nif int(argv[1]) == int(argv[2]): exit(0)\nexit(1)"


class Taken(Machine):
    """A machine whose agent replaced its shell: whatever runs prints 7 and succeeds."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, ...]] = []

    async def shell(self, command: str, *, seconds: float | None = None) -> Any:
        raise NotImplementedError

    async def run(self, script: str, *, parameters: Any = (), **_: Any) -> Ran:
        self.ran.append(tuple(parameters)[1:])
        return Ran(0, "7\n", "")

    async def close(self) -> None:
        pass


def judged(answer: str, machine: Machine | None = None, **evaluation: Any) -> Judgement:
    problem = Problem.model_validate({"description": "?", **evaluation})
    return asyncio.run(judge(machine or Taken(), problem, answer, DIALECTS["agentbench-v0.2"]))


@pytest.mark.parametrize(
    ("regex", "answer", "passes"),
    [
        ("^[0-9]+$", " 17\n", True),
        ("^[0-9]+$", "seventeen", False),
        ("ü", "für", True),
        ("x", "\ud800x", True),
    ],
)
def test_a_regular_expression_is_searched_for(regex: str, answer: str, passes: bool) -> None:
    assert judged(answer, match={"regex": regex}).passed is passes


@pytest.mark.parametrize("answer", ["1" * 40 + "x", "1" * 70_000])
def test_an_answer_that_takes_for_ever_is_refused(answer: str) -> None:
    found = judged(answer, match={"regex": r"^(\d+\s?)+$"})
    assert not found.passed
    assert found.reason.startswith("matching took too long")


def test_a_checkouts_stock_script_is_not_run_in_the_machine() -> None:
    machine = Taken()
    check = [{"code": "cat /proc/uptime"}, {"language": "python", "code": INTEGER}]
    assert not judged("8", machine, check=check).passed
    assert judged("7", machine, check=check).passed
    assert len(machine.ran) == 2  # the reference, each time


def test_a_script_after_a_stock_one_has_it_among_its_parameters() -> None:
    machine = Taken()
    last = {"code": "true"}
    check = [{"code": "echo 7"}, {"language": "python", "code": INTEGER}, last]
    assert judged("7", machine, check=check).passed
    assert machine.ran[-1] == ("true", "7", "7\n", "")
