"""A worker's inside: one workbench, jobs in and results out as bytes."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cqd_hub.errors import CqdHubError
from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.evaluation.skill import Judged
from cqd_hub.recipe import Recipe
from cqd_hub.run.executors._local import LocalExecutor
from cqd_hub.run.executors._messages import decode_order, encode_done, encode_error
from cqd_hub.run.journal import Journal
from cqd_hub.run.workbench import Workbench, open_workbench

_KEPT = 256  # (individual, split) pairs whose answers are kept in memory


@dataclass(frozen=True)
class Opening:
    """All that a worker must know to open what the driver has.

    Args:
        recipe: The recipe, as JSON.
        folder: Where its relative paths start.
        run: The run directory; a worker that does not see it needs no merges.
        basis: Hash of the basis.
        pins: Commits of models of the Hub.
        threads: Threads of torch on a CPU; 0 leaves it alone.
    """

    recipe: Mapping[str, Any]
    folder: str
    run: str
    basis: str
    pins: Mapping[str, str]
    threads: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Opening:
        return cls(**json.loads(text))


class Worker:
    """An open worker; see `open_worker`."""

    def __init__(self, bench: Workbench) -> None:
        self._bench, self._executor = bench, LocalExecutor(bench)
        self._answers: dict[tuple[int, str], list[Measurement]] = {}
        bench.evaluator.answers = lambda individual, split: self._answers.get(
            (individual, split), []
        )

    @property
    def hello(self) -> str:
        """What the driver wants to know of it, as JSON."""
        facts = {
            "manifest": self._bench.manifest(),
            "width": self._executor.width,
            "process": os.getpid(),
        }
        return json.dumps(facts)

    async def evaluate(self, order: bytes) -> bytes:
        """One job, from `encode_order` to `encode_done`, or `encode_error`."""
        job, answers = decode_order(order)
        for number, measurements in answers.items():
            if (number, job.split) not in self._answers:
                self._remember(number, measurements)
        try:
            return encode_done(await self._executor.evaluate(job))
        except CqdHubError as error:
            return encode_error(error)

    def recall(self, journal: Journal) -> None:
        """Learn the verdicts of a journal."""
        for judged in journal.verdicts():
            self._bench.evaluator.recall(judged)

    def _remember(self, individual: int, measurements: list[Measurement]) -> None:
        """Keep what a parent answered: as verdicts, and as drafts of its children's answers."""
        for one in measurements:
            self._answers.setdefault((individual, one.split), []).append(one)
            self._bench.evaluator.recall(
                Judged(one.skill, one.sample, one.text, one.finish, one.score, one.note)
            )
        while len(self._answers) > _KEPT:
            del self._answers[next(iter(self._answers))]


@asynccontextmanager
async def open_worker(
    opening: Opening, note: Callable[[str], None] = lambda line: None
) -> AsyncIterator[Worker]:
    """Open what *opening* names, on this machine.

    Raises:
        UserError: A model, a task or a sandbox is missing here.
        RunError: A model cannot be had from the Hub now.
    """
    if opening.threads:
        import torch

        torch.set_num_threads(opening.threads)
    recipe, run = Recipe.model_validate(opening.recipe), Path(opening.run)
    visible = (run / "journal.sqlite").exists()
    async with open_workbench(
        recipe,
        Path(opening.folder),
        run=run if visible else None,
        expected=opening.basis,
        pins=opening.pins,
        note=note,
    ) as bench:
        worker = Worker(bench)
        if visible:
            journal = Journal(run)
            try:
                worker.recall(journal)
            finally:
                journal.close()
        yield worker
