"""Jobs in this process, by one open workbench."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from cqd_hub.run.executors._interface import Done, Job
from cqd_hub.run.journal import Journal
from cqd_hub.run.merges import present
from cqd_hub.run.workbench import Workbench


class LocalExecutor:
    """The executor of a run on one device, and the inside of every worker of the others.

    Args:
        bench: Open; stays the caller's.
    """

    workers = 1

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._spent: dict[str, float] = {}
        self._room = asyncio.Semaphore(self.width)

    @property
    def width(self) -> int:
        """As many as the engine wants: it works on one while the sandbox finishes another."""
        return self._bench.engine.width

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing here is the executor's own."""

    async def manifests(self) -> Sequence[dict[str, Any]]:
        """The workbench's."""
        return [self._bench.manifest()]

    def recall(self, journal: Journal) -> None:
        """See `Executor.recall`."""
        for judged in journal.verdicts():
            self._bench.evaluator.recall(judged)
        self._bench.evaluator.answers = journal.measurements

    async def evaluate(self, job: Job) -> Done:
        """See `Executor.evaluate`."""
        async with self._room, present(self._bench.merges, job.candidate.genome):
            evaluation = await self._bench.evaluator.evaluate(
                job.candidate,
                job.split,
                job.skills or None,
                parents=job.parents,
                decided=job.standing.decided if job.standing else None,
            )
        spent = self._spent_since()
        executed, reused = int(spent.pop("executed")), int(spent.pop("reused"))
        total = evaluation.seconds + spent.get("merge", 0.0)
        seconds = {"total": total, **spent}
        return Done(
            evaluation.measurements,
            seconds,
            asdict(evaluation.generated),
            executed,
            reused,
            evaluation.stopped,
        )

    def _spent_since(self) -> dict[str, float]:
        """What the workbench counts, since the last job's end: seconds by their use, answers."""
        evaluator, store = self._bench.evaluator, self._bench.merges
        now = {**self._bench.engine.seconds, "execute": evaluator.execute_seconds}
        now |= {"merge": store.seconds} if store is not None else {}
        now |= {"executed": evaluator.executed, "reused": evaluator.verdicts.reused}
        spent = {key: value - self._spent.get(key, 0.0) for key, value in now.items()}
        self._spent = now
        return spent
