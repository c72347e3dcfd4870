"""Scores for one individual: requests to the engine, answers to metric or sandbox."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from cqd_hub.evaluation.engine import Candidate, Engine, Reply
from cqd_hub.evaluation.execution import judge
from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.evaluation.sandbox import Sandbox
from cqd_hub.evaluation.skills import Sample, Skill
from cqd_hub.recipe import Split


class Verdicts:
    """Answers already judged, by (skill, sample, text): they are never executed again."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, bytes], tuple[float, str]] = {}
        self.reused = 0

    def remember(self, skill: str, sample: str, text: str, score: float, note: str) -> None:
        """Keep a verdict."""
        self._known[self._key(skill, sample, text)] = (score, note)

    def find(self, skill: str, sample: str, text: str) -> tuple[float, str] | None:
        """Return score and note, or None."""
        verdict = self._known.get(self._key(skill, sample, text))
        self.reused += verdict is not None
        return verdict

    @staticmethod
    def _key(skill: str, sample: str, text: str) -> tuple[str, str, bytes]:
        return skill, sample, hashlib.sha256(text.encode(errors="surrogatepass")).digest()


class Evaluation(NamedTuple):
    """What evaluating one individual on one split gave, and what took how long (wall seconds)."""

    measurements: list[Measurement]
    seconds: float

    def scores(self) -> dict[str, float]:
        """Skill → mean score."""
        totals: dict[str, list[float]] = {}
        for measurement in self.measurements:
            totals.setdefault(measurement.skill, []).append(measurement.score)
        return {skill: sum(scores) / len(scores) for skill, scores in totals.items()}


@dataclass
class Evaluator:
    """Evaluates individuals on all skills of a recipe.

    Args:
        engine: Open.
        skills: Loaded and prepared.
        sandbox: Open; None where no skill executes answers.
        verdicts: Shared memory of what was judged.
    """

    engine: Engine
    skills: Mapping[str, Skill]
    sandbox: Sandbox | None
    verdicts: Verdicts = field(default_factory=Verdicts)
    executed: int = field(default=0, init=False)
    execute_seconds: float = field(default=0.0, init=False)
    _under_way: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)

    async def evaluate(
        self, candidate: Candidate, split: Split, skills: Iterable[str] | None = None
    ) -> Evaluation:
        """Evaluate one individual on one split of the given skills (all by default).

        Raises:
            UserError: A metric outside 0..1 or a prompt longer than the context.
            RunError: The sandbox failed; nothing is cached of what it could not judge.
        """
        start = time.perf_counter()
        tasks = [
            asyncio.ensure_future(self._measure(candidate, split, self.skills[name], sample))
            for name in (skills if skills is not None else self.skills)
            for sample in self.skills[name].samples[split]
        ]
        try:
            measurements = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        return Evaluation(list(measurements), time.perf_counter() - start)

    async def _measure(
        self, candidate: Candidate, split: Split, skill: Skill, sample: Sample
    ) -> Measurement:
        futures = [
            [self.engine.submit(candidate, request) for request in repeats]
            for repeats in sample.requests
        ]
        await asyncio.gather(*itertools.chain(*futures))
        replies = [[future.result() for future in repeats] for repeats in futures]
        first = replies[0][0]
        path, note = self.engine.path, ""
        if skill.execution:
            assert self.sandbox is not None
            path = f"{path}+{self.sandbox.kind}"
            text = skill.answer(sample, replies)
            score, note = await self._execute(skill, sample, text)
        else:
            scored = first.finish == "scored"
            text = _choice(replies) if scored else "\n".join(reply.text for reply in replies[0])
            score = skill.score(sample, replies)
        return Measurement(
            skill=skill.name,
            split=split,
            sample=sample.id,
            score=score,
            text=text,
            tokens=first.tokens,
            finish=first.finish,
            path=path,
            note=note,
        )

    @contextmanager
    def _executing(self) -> Iterator[None]:
        """Count the wall time during which at least one answer is being executed."""
        if self._under_way == 0:
            self._since = time.perf_counter()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if self._under_way == 0:
                self.execute_seconds += time.perf_counter() - self._since

    async def _execute(self, skill: Skill, sample: Sample, text: str) -> tuple[float, str]:
        known = self.verdicts.find(skill.name, sample.id, text)
        if known is not None:
            return known
        assert skill.execution is not None
        assert self.sandbox is not None
        with self._executing():
            outcome = await self.sandbox.run(skill.execution.program(sample.document, text))
        self.executed += 1
        score, note = judge(skill.execution, sample.document, outcome)
        self.verdicts.remember(skill.name, sample.id, text, score, note)
        return score, note


def _choice(replies: list[list[Reply]]) -> str:
    """What a log-likelihood task 'answered': the number of the likeliest choice."""
    likelihoods = [answers[0].log_likelihood for answers in replies]
    return str(max(range(len(likelihoods)), key=likelihoods.__getitem__))
