"""Times as on a quiet machine, whoever else is at work on this one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from cqd_hub.evaluation.engine._threads import threads

Now = Callable[[], float]
_LEAST = 3  # repetitions, however long one takes
_TOGETHER = 2.0  # seconds for all that is measured with several threads
_WORTHLESS = 3.0  # times one thread's time, at which a repetition with several is given up


class Stopwatch:
    """Times work on a device.

    On a CPU with one thread it reads processor time: others do not add to it. Threads that wait
    for each other may take a hundred times as long where others have their cores, and in every
    repetition, so that wall time with all threads counts only between one thread's time and its
    share of that.

    Attributes:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._left = _TOGETHER

    def shortest(self, work: Callable[[Now], Sequence[float]], *, patience: float) -> list[float]:
        """The shortest of several repetitions, one for each of the times that *work* takes.

        Args:
            work: Called with a clock to read; begins and ends settled (see `settle`).
            patience: Seconds of repetitions, for one thread and for all.
        """
        if self.device.type != "cpu":
            return _repeat(work, time.perf_counter, patience)[0]
        count = torch.get_num_threads()
        with threads(1):
            alone, whole = _repeat(work, time.thread_time, patience)
        if count == 1:
            return alone
        start = time.perf_counter()
        together = _in_time(work, alone, _WORTHLESS * whole, min(patience, self._left))
        self._left -= time.perf_counter() - start
        pairs = zip(alone, together, strict=True)
        return [min(max(shared, one / count), one) for one, shared in pairs]

    def settle(self) -> None:
        """Wait for what the device has yet to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _repeat(
    work: Callable[[Now], Sequence[float]], now: Now, patience: float
) -> tuple[list[float], float]:
    """The shortest times, and the shortest repetition."""
    work(now)  # chooses kernels
    best, whole = list[float](), float("inf")
    end, done = time.perf_counter() + patience, 0
    while done < _LEAST or time.perf_counter() < end:
        start = now()
        times = work(now)
        whole = min(whole, now() - start)
        best = [min(pair) for pair in zip(best or times, times, strict=True)]
        done += 1
    return best, whole


class _LateError(Exception):
    pass


def _in_time(
    work: Callable[[Now], Sequence[float]], best: list[float], limit: float, patience: float
) -> list[float]:
    """The shorter of *best* and what repetitions take that end within a limit."""
    end = time.perf_counter() + patience
    while (start := time.perf_counter()) < end:

        def now(until: float = start + limit) -> float:
            read = time.perf_counter()
            if read > until:
                raise _LateError
            return read

        try:
            best = [min(pair) for pair in zip(best, work(now), strict=True)]
        except _LateError:
            continue
    return best
