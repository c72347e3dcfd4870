"""The search itself: children asked for, made, evaluated, and told to the archives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from cqd_hub.run.archives import vector
from cqd_hub.run.executors import Executor
from cqd_hub.run.journal import Journal, Role
from cqd_hub.run.merges import present
from cqd_hub.run.progress import Observer, Pace, Progress, Stopped, best_average
from cqd_hub.run.racing import Standing
from cqd_hub.run.recorder import Recorder
from cqd_hub.run.variation import make_child
from cqd_hub.run.workbench import Lineup
from cqd_hub.search import Cycle, Proposal


class Children:
    """All children of a run that have not been told yet.

    With one worker a generation's children are told together, when all of them are evaluated. With
    several nobody waits: a child is asked for when somebody is free, and told when it is done.
    Either way the order of telling is journaled, and telling in it again gives the same archives.

    Args:
        lineup: What children are made from.
        executor: Open.
        recorder: Over the same executor and journal.
        journal: Where the run stands.
        cycle: As told so far.
        skill_expert: Per skill, the expert whose directions `of: expert` mutates along.
        first: Id of the first child.
        observer: Told of progress.
        stop: Set when the person wants to stop.
    """

    def __init__(
        self,
        lineup: Lineup,
        executor: Executor,
        recorder: Recorder,
        journal: Journal,
        cycle: Cycle,
        *,
        skill_expert: tuple[int, ...],
        first: int,
        observer: Observer,
        stop: asyncio.Event,
    ) -> None:
        self._lineup, self._recipe = lineup, lineup.recipe
        self._executor, self._recorder = executor, recorder
        self._journal, self._cycle = journal, cycle
        self._skill_expert, self._first = skill_expert, first
        self._observer, self._stop = observer, stop
        self._step = self._recipe.search.children_per_step
        self._total = -(-self._recipe.search.children // self._step) * self._step
        self._pace = Pace()
        self._merges_of: dict[int, tuple[str, ...]] = {}
        self._said_short = False
        self._stopped = set(journal.stopped())
        self._standing: Standing | None = None  # as long as nobody is told
        self._order: tuple[str, ...] = ()
        self._evaluated = 0

    @property
    def evaluated(self) -> int:
        """How many this session has evaluated."""
        return self._evaluated

    async def go(self) -> None:
        """Do what is left to do.

        Raises:
            Stopped: Asked to; children in flight are evaluated and recorded.
        """
        told, known = set(self._journal.told()), self._journal.ids()
        everyone = range(self._first, self._first + self._total)
        left = [number for number in everyone if number not in told]
        self._made = self._total - len(left) + sum(number in known for number in left)
        self.clear_merges()
        if self._executor.workers > 1:
            await self._steady(left, known)
        else:
            await self._by_steps(left, known)
        if self._recipe.search.early_stop:
            self._observer.note(self._saved())

    async def _by_steps(self, left: list[int], known: set[int]) -> None:
        for numbers in self._generations(left):
            proposals = [self._proposal(number) for number in numbers]
            missing = [proposal for proposal in proposals if proposal.individual not in known]
            await self._evaluate_all(missing, last=len(missing) + self._made)
            self._tell(numbers)
            self.clear_merges()
            self._tell_progress(proposals[-1].skill)

    def _generations(self, left: list[int]) -> Iterator[list[int]]:
        by: dict[int, list[int]] = {}
        for number in left:
            by.setdefault((number - self._first) // self._step, []).append(number)
        yield from by.values()

    async def _evaluate_all(self, proposals: list[Proposal], *, last: int) -> None:
        """Evaluate children of one generation; after a failure no further one is begun."""
        gate, failures = asyncio.Semaphore(self._executor.width), list[Exception]()

        async def one(proposal: Proposal) -> None:
            async with gate:
                if failures:
                    return
                try:
                    if self._stop.is_set():
                        raise Stopped
                    await self._child(proposal, self._to_beat())
                except Exception as error:
                    failures.append(error)
                    return
            self._made, self._evaluated = self._made + 1, self._evaluated + 1
            self._pace.tick(time.monotonic())
            if self._made < last:  # the last one is told with the archives it changed
                self._tell_progress(proposal.skill)

        await asyncio.gather(*(one(proposal) for proposal in proposals))
        _raise_first(failures)

    async def _steady(self, left: list[int], known: set[int]) -> None:
        """Keep every worker busy; after a failure nothing more is begun, and the rest is told."""
        # Evaluated, but their session ended before they were told.
        self._tell([number for number in left if number in known])
        waiting = [number for number in reversed(left) if number not in known]
        under_way: dict[asyncio.Task[None], Proposal] = {}
        failures: list[Exception] = []
        try:
            while waiting or under_way:
                while waiting and not failures and len(under_way) < self._executor.width:
                    if self._stop.is_set():
                        failures.append(Stopped())
                        break
                    proposal = self._proposal(waiting.pop())
                    task = asyncio.create_task(self._child(proposal, self._to_beat()))
                    under_way[task] = proposal
                if not under_way:
                    break
                ended, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(ended, key=lambda task: under_way[task].individual):
                    proposal = under_way.pop(task)
                    if (error := task.exception()) is not None:
                        if not isinstance(error, Exception):
                            raise error
                        failures.append(error)
                        continue
                    self._tell([proposal.individual])
                    self._made, self._evaluated = self._made + 1, self._evaluated + 1
                    self._pace.tick(time.monotonic())
                    self.clear_merges()
                    self._tell_progress(proposal.skill)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        _raise_first(failures)

    def _proposal(self, number: int) -> Proposal:
        (proposal,) = self._cycle.ask((number - self._first) // self._step, 1, number)
        return proposal

    def _to_beat(self) -> Standing | None:
        """What a child that is asked for now must beat; None where it is asked everything anyway.

        It may be told after others: elites only give way to better ones, so whoever is out of reach
        of the archives now is out of reach of them then.
        """
        if not self._recipe.search.early_stop:
            return None
        if self._standing is None:
            self._standing = Standing.of(self._cycle, self._recipe)
        if not self._order:
            answered = self._journal.sample_scores(0, "optimisation")  # by the first expert
            self._order = self._standing.order({skill: len(answered[skill]) for skill in answered})
        return self._standing

    async def _child(self, proposal: Proposal, standing: Standing | None) -> None:
        mother, father = (self._recorder.genome(parent) for parent in proposal.parents)
        expert = self._skill_expert[proposal.skill]
        genome, lineage = make_child(
            proposal,
            (mother, father),
            variation=self._recipe.variation,
            basis=self._lineup.basis,
            expert=expert,
            seed=self._recipe.seed,
        )
        names = {
            "skill": list(self._recipe.skills)[proposal.skill],
            "expert": list(self._recipe.experts)[expert],
        }
        store = self._lineup.merges
        async with present(store, genome):
            if store is not None:  # what it must come out as, should it be made again
                (made,) = (m for m in genome.merges if m.id == lineage["crossover"]["merge"])
                lineage["crossover"]["digest"] = store.digest(made)
            whole = await self._recorder.add(
                proposal.individual,
                Role.CHILD,
                f"child {proposal.individual}",
                genome,
                generation=proposal.generation,
                lineage=names | lineage,
                parents=proposal.parents,
                skills=self._order if standing else (),
                standing=standing,
            )
        if not whole:
            self._stopped.add(proposal.individual)

    def _tell(self, numbers: list[int]) -> None:
        self._journal.tell(numbers)
        for number in numbers:
            if number not in self._stopped:  # who was stopped early could enter no archive
                scores = self._journal.scores_of(number, "optimisation")
                self._cycle.tell(number, vector(scores, self._recipe))
        self._standing = None

    def _saved(self) -> str:
        """What stopping early has spared this run."""
        each = sum(map(len, self._journal.sample_scores(0, "optimisation").values()))
        stopped = self._journal.stopped()
        unasked = sum(each - sum(answered.values()) for answered in stopped.values())
        share = 100 * unasked / (each * self._total) if self._total else 0.0
        return (
            f"{len(stopped)} of {self._total} children were stopped early: {share:.1f} % of all "
            "answers were not needed"
        )

    def clear_merges(self) -> None:
        """Keep the merges that elites weigh, and of others what the budget allows."""
        store = self._lineup.merges
        if store is None:
            return
        needed: set[str] = set()
        archives = self._cycle.archives
        elites = {n for archive in archives for n in archive.elites.individuals.tolist()}
        for number in elites:
            if number not in self._merges_of:
                merges = self._recorder.genome(number).merges
                self._merges_of[number] = tuple(merge.id for merge in merges)
            needed.update(self._merges_of[number])
        if store.keep(needed) and not self._said_short:
            self._said_short = True
            self._observer.note(
                f"the elites' merges take more than genome.disk, {self._recipe.genome.disk}; "
                "the oldest are cleared and made again when needed"
            )

    def _tell_progress(self, skill: int) -> None:
        names = list(self._recipe.skills)
        pace, left = self._pace.per_minute(), self._total - self._made
        summaries = [archive.summary for archive in self._cycle.archives]
        self._observer.progress(
            Progress(
                children=self._made,
                total=self._total,
                skill=names[skill],
                best={n: s.best or 0.0 for n, s in zip(names, summaries, strict=True)},
                mean={n: s.mean or 0.0 for n, s in zip(names, summaries, strict=True)},
                average=best_average(self._cycle),
                coverage=sum(summary.coverage for summary in summaries) / len(summaries),
                qd_score=sum(summary.qd_score for summary in summaries),
                per_minute=pace,
                eta_seconds=60 * left / pace if pace else None,
                reused=self._recorder.reused,
            )
        )


def _raise_first(failures: list[Exception]) -> None:
    if failures:
        raise min(failures, key=lambda error: isinstance(error, Stopped))
