"""Scores for one individual: every sample of every skill, all at once."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cqd_hub.evaluation.drafts import Answers, Drafts, Relatives
from cqd_hub.evaluation.engine import Candidate, Engine
from cqd_hub.evaluation.generated import Generated
from cqd_hub.evaluation.judging import Judge, Verdicts
from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.evaluation.sandbox import Sandbox
from cqd_hub.evaluation.skill import Judged, Means, Question, Skill
from cqd_hub.evaluation.stopping import Course, Decided
from cqd_hub.recipe import Split


class Evaluation(NamedTuple):
    """What evaluating one individual on one split gave, and what took how long (wall seconds).

    ``stopped`` is None where every sample was asked, else skill → samples answered.
    """

    measurements: list[Measurement]
    seconds: float
    generated: Generated
    stopped: dict[str, int] | None = None

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
        skills: Loaded and open.
        sandbox: Open; None where no skill executes answers.
        verdicts: Shared memory of what was judged.
        answers: What individuals said in earlier evaluations.
    """

    engine: Engine
    skills: Mapping[str, Skill]
    sandbox: Sandbox | None
    verdicts: Verdicts = field(default_factory=Verdicts)
    answers: Answers = lambda individual, split: ()

    def __post_init__(self) -> None:
        self._judge = Judge(self.sandbox, self.verdicts)
        self._relatives = Relatives(lambda individual, split: self.answers(individual, split))

    @property
    def executed(self) -> int:
        """Answers and turns that were executed."""
        return self._judge.executed

    @property
    def execute_seconds(self) -> float:
        """Wall time during which at least one was."""
        return self._judge.seconds

    def recall(self, judged: Judged) -> None:
        """Learn from an earlier session, so that nothing is executed twice."""
        self.skills[judged.skill].recall(judged, self.verdicts)

    async def evaluate(
        self,
        candidate: Candidate,
        split: Split,
        skills: Iterable[str] | None = None,
        *,
        parents: Sequence[int] = (),
        decided: Decided | None = None,
    ) -> Evaluation:
        """Evaluate one individual on one split of the given skills (all by default).

        Args:
            parents: Individuals whose answers this one's may resemble: they are offered to the
                engine as drafts, which changes nothing but its speed.
            decided: Asked between blocks of samples whether scores within these bounds settle what
                is to become of it: then no more are asked. With it the order of *skills* is that
                of the blocks, see `Course`.

        Raises:
            UserError: A metric outside 0..1 or a prompt longer than the context.
            RunError: Sandbox or environment failed; nothing is cached of what was not judged.
        """
        start = time.perf_counter()
        names = list(self.skills if skills is None else skills)
        # What is chosen by and reported is of one path, whatever the search was fast with.
        engine = self.engine if split == "optimisation" else self.engine.canonical
        means = Means(engine, self._judge, Generated())
        if decided is None:
            wanted = [(name, one) for name in names for one in self.skills[name].samples[split]]
            measurements = await self._ask(means, candidate, split, wanted, parents)
            return Evaluation(measurements, time.perf_counter() - start, means.generated)
        samples = {name: [one.id for one in self.skills[name].samples[split]] for name in names}
        said = self._relatives.measurements(parents, split)
        course, measurements = Course(samples, said, decided), list[Measurement]()
        while block := course.block():
            # Always in the recipe's order: a single block makes the batches of no blocks at all.
            wanted = [
                (name, one)
                for name, skill in self.skills.items()
                for one in skill.samples[split]
                if (name, one.id) in block
            ]
            found = await self._ask(means, candidate, split, wanted, parents)
            course.note(found)
            measurements += found
        seconds = time.perf_counter() - start
        return Evaluation(measurements, seconds, means.generated, course.stopped)

    async def _ask(
        self,
        means: Means,
        candidate: Candidate,
        split: Split,
        wanted: Iterable[tuple[str, Question]],
        parents: Sequence[int],
    ) -> list[Measurement]:
        """Have these samples measured side by side; after a failure none goes on."""
        tasks = [
            asyncio.ensure_future(
                self._measure(means, candidate, split, self.skills[name], sample, parents)
            )
            for name, sample in wanted
        ]
        try:
            measurements = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        return list(itertools.chain(*measurements))

    async def _measure(
        self,
        means: Means,
        candidate: Candidate,
        split: Split,
        skill: Skill,
        sample: Question,
        parents: Sequence[int],
    ) -> Sequence[Measurement]:
        drafts = Drafts()
        if parents:
            drafts = self._relatives.drafts(parents, split, skill, sample.id)
        return await skill.measure(means, candidate, split, sample, drafts)
