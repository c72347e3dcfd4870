"""What executors with workers elsewhere share: jobs go out as bytes, again if their worker ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from cqd_hub.errors import RunError
from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.run.executors._interface import Done, Job
from cqd_hub.run.executors._messages import decode_done, encode_order
from cqd_hub.run.journal import Journal

_TRIES = 3  # workers that a job may end before it is blamed
Hand = TypeVar("Hand")


class WorkerGone(Exception):
    """A worker ended; what it was doing is to be done again."""


class HandingOut(ABC, Generic[Hand]):
    """Hands every job to a worker that is free."""

    _journal: Journal | None = None

    def recall(self, journal: Journal) -> None:
        """See `Executor.recall`; the answers of a job's parents go out with it."""
        self._journal = journal

    async def evaluate(self, job: Job) -> Done:
        """See `Executor.evaluate`; a job whose worker ends is handed out again."""
        order = encode_order(job, self._answers(job))
        words = ""
        for _ in range(_TRIES):
            hand = await self._take()
            try:
                return decode_done(await self._ask(hand, order))
            except WorkerGone as gone:
                words = str(gone)
                self._lost(hand, words)
            finally:
                self._give_back(hand)
        raise RunError(
            f"individual {job.candidate.id} ended {_TRIES} workers: {words}",
            remedy="see that the machines have memory to spare, then run the same command again",
        )

    def _answers(self, job: Job) -> dict[int, list[Measurement]]:
        journal = self._journal
        if journal is None:
            return {}
        return {number: journal.measurements(number, job.split) for number in set(job.parents)}

    @abstractmethod
    async def _take(self) -> Hand:
        """Wait for a free worker."""

    @abstractmethod
    async def _ask(self, hand: Hand, order: bytes) -> bytes:
        """A worker's answer; raises `WorkerGone`."""

    @abstractmethod
    def _lost(self, hand: Hand, words: str) -> None:
        """Told that a worker ended."""

    @abstractmethod
    def _give_back(self, hand: Hand) -> None:
        """Free again, or gone."""
