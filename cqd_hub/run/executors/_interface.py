"""What evaluates a run's individuals: in this process, in others, or on other machines."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from cqd_hub.evaluation.engine import Candidate
from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.recipe import Split
from cqd_hub.run.journal import Journal
from cqd_hub.run.racing import Standing


class Job(NamedTuple):
    """One individual to evaluate.

    Args:
        candidate: Who; merges that its genome weighs are there while the job runs.
        split: On which samples.
        skills: Of which skills; all if empty.
        parents: Individuals whose answers are drafts of this one's.
        standing: What it must beat; once it cannot, it is asked no more. None asks everything.
    """

    candidate: Candidate
    split: Split
    skills: tuple[str, ...] = ()
    parents: tuple[int, ...] = ()
    standing: Standing | None = None


class Done(NamedTuple):
    """What came of a job.

    Args:
        measurements: One per sample (and repeat) asked.
        seconds: ``total`` wall time, and what of it was spent where.
        generated: Answers, tokens, drafted tokens and passes, see `Generated`.
        executed: Answers that were executed for it.
        reused: Answers whose verdict was known.
        stopped: Skill → samples answered, where not all were asked; else None.
    """

    measurements: list[Measurement]
    seconds: dict[str, float]
    generated: dict[str, int]
    executed: int = 0
    reused: int = 0
    stopped: dict[str, int] | None = None


class Executor(Protocol):
    """Evaluates jobs; open with ``async with``."""

    @property
    def workers(self) -> int:
        """How many there are, now."""
        ...

    @property
    def width(self) -> int:
        """Jobs that keep them all busy."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    async def manifests(self) -> Sequence[dict[str, Any]]:
        """What each worker promises to stay the same, see `Workbench.manifest`."""
        ...

    def recall(self, journal: Journal) -> None:
        """Learn from a run's earlier sessions: verdicts, and answers that are drafts of others."""
        ...

    async def evaluate(self, job: Job) -> Done:
        """Evaluate one individual; jobs beyond `width` wait for their turn.

        Raises:
            UserError: As `Evaluator.evaluate`.
            RunError: As `Evaluator.evaluate`, or no worker is left.
        """
        ...
