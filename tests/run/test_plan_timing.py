"""What a plan measures does not depend on who else is at work."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from cqd_hub.run.plan._timing import Now, Stopwatch


@pytest.fixture
def threads() -> Iterator[int]:
    """Four of them, whatever this machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


def shortest(work: object, *, patience: float = 0.02) -> list[float]:
    return Stopwatch(torch.device("cpu")).shortest(work, patience=patience)  # type: ignore[arg-type]


def test_waiting_for_a_core_is_not_counted(threads: int) -> None:
    def work(now: Now) -> list[float]:
        start = now()
        time.sleep(0.02)  # as a process does that others keep from a core
        return [now() - start]

    assert shortest(work)[0] < 0.02


@pytest.mark.parametrize(("together", "found"), [(50.0, 8.0), (3.0, 3.0), (0.1, 2.0)])
def test_all_threads_count_between_one_and_their_share(
    threads: int, together: float, found: float
) -> None:
    def work(now: Now) -> list[float]:
        return [8.0 if torch.get_num_threads() == 1 else together, 1.0]

    assert shortest(work) == [found, 1.0]
    assert torch.get_num_threads() == threads


def test_the_shortest_of_each(threads: int) -> None:
    times = iter([[1.0, 1.0], [3.0, 5.0], [4.0, 2.0], [6.0, 6.0]])
    torch.set_num_threads(1)
    assert shortest(lambda now: next(times), patience=0.0) == [3.0, 2.0]  # the first warms up


def test_threads_that_wait_for_each_other_are_given_up(threads: int) -> None:
    ended = []

    def work(now: Now) -> list[float]:
        if torch.get_num_threads() > 1:
            for _ in range(500):
                time.sleep(0.01)
                now()
            ended.append(True)
        return [1.0]

    assert shortest(work) == [1.0]
    assert not ended
    assert torch.get_num_threads() == threads


def test_threads_are_restored_when_work_fails(threads: int) -> None:
    def work(now: Now) -> list[float]:
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="layer"):
        shortest(work)
    assert torch.get_num_threads() == threads
