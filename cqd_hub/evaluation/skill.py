"""What the evaluator knows of a skill, whatever kind of task it is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cqd_hub.evaluation.drafts import Drafts, Said
from cqd_hub.evaluation.engine import Candidate, Engine, Reply, Request
from cqd_hub.evaluation.generated import Generated
from cqd_hub.evaluation.judging import Judge, Verdicts
from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.recipe import Split

if TYPE_CHECKING:
    from cqd_hub.evaluation.episodes import Resources


class Question(Protocol):
    """A sample, as far as the evaluator cares."""

    @property
    def id(self) -> str:
        """Names it within its skill."""
        ...


@dataclass(frozen=True)
class Means:
    """What answers are made and judged with."""

    engine: Engine
    judge: Judge
    generated: Generated

    def submit(self, candidate: Candidate, request: Request) -> asyncio.Future[Reply]:
        """See `Engine.submit`; the reply is counted."""
        future = self.engine.submit(candidate, request)
        future.add_done_callback(self.generated.note)
        return future


class Judged(NamedTuple):
    """An answer that was judged in an earlier session."""

    skill: str
    sample: str
    text: str
    finish: str
    score: float
    note: str


class Outlook(NamedTuple):
    """What a sample will ask of an engine, as far as that is known before anything is answered.

    Args:
        prompt: Tokens of its first prompt.
        requests: How many such prompts there are: repeats, choices.
        limit: Tokens of an answer, at most; of a scored one, its length.
        answer: Tokens of the reference answer, where there is one.
        turns: Answers in turn, at most.
        executed: Whether answers are executed.
        scored: Whether answers are given, and their likelihood asked.
    """

    prompt: int
    requests: int = 1
    limit: int = 0
    answer: int | None = None
    turns: int = 1
    executed: bool = False
    scored: bool = False


class Skill(Protocol):
    """Something that is scored 0..1 on samples of three splits."""

    @property
    def name(self) -> str:
        """Its name in the recipe."""
        ...

    @property
    def samples(self) -> Mapping[Split, Sequence[Question]]:
        """What is asked, per split; no question is in two of them."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that decides a score but the model: samples, requests, scoring."""
        ...

    def record(self) -> dict[str, Any]:
        """What else a run's manifest says of it, and a resumed run must agree with."""
        ...

    @property
    def guarantees(self) -> str:
        """How its answers are confined, where it sees to that itself; else empty."""
        ...

    async def open(self, resources: Resources) -> None:
        """Start what measuring needs.

        Raises:
            UserError: Something is not installed or not permitted.
        """
        ...

    async def close(self) -> None:
        """End what `open` started."""
        ...

    def check(self, engine: Engine) -> None:
        """Refuse, before anything runs, what the model cannot answer.

        Raises:
            UserError: Names it.
        """
        ...

    def question(self, sample: Any) -> str:
        """What one of `samples` asks, for people to read: no examples, no chat template."""
        ...

    def outlook(self, sample: Any) -> Outlook:
        """What one of `samples` will ask of an engine."""
        ...

    async def measure(
        self, means: Means, candidate: Candidate, split: Split, sample: Any, drafts: Drafts
    ) -> Sequence[Measurement]:
        """Have one sample answered and judged, once per repeat.

        Args:
            sample: One of `samples`.
            drafts: What relatives said to it; never changes an answer.

        Raises:
            UserError: A metric outside 0..1, a prompt longer than the context.
            RunError: Sandbox, environment or the task's own code failed.
        """
        ...

    def recall(self, judged: Judged, verdicts: Verdicts) -> None:
        """Learn from an earlier session, so that nothing is executed twice."""
        ...

    def said(self, measurement: Measurement) -> Sequence[Said]:
        """What the individual said, turn by turn."""
        ...
