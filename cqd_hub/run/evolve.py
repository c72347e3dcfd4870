"""The main job: recipe to journal. Killed at any instant, it resumes with the same call."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine import Candidate
from cqd_hub.genome import Genome, refuse_twins
from cqd_hub.genome.layout_file import write_layout
from cqd_hub.recipe import Recipe
from cqd_hub.run.archives import expert_scores, make_cycle, replay, vector
from cqd_hub.run.directory import (
    agree,
    discard,
    open_directory,
    read_manifest,
    refuse_other_recipe,
)
from cqd_hub.run.finish import Finish
from cqd_hub.run.journal import Individual, Journal, Role, count_individuals
from cqd_hub.run.log import Logged
from cqd_hub.run.merges import present
from cqd_hub.run.models import pins_of
from cqd_hub.run.progress import Observer, Pace, Progress, Silent, Stopped, best_average
from cqd_hub.run.seeds import Seeds
from cqd_hub.run.space import check_space
from cqd_hub.run.variation import make_child
from cqd_hub.run.workbench import Workbench, open_workbench
from cqd_hub.search import Cycle, Proposal, skill_experts

BASE = -1  # the base's id; experts are 0 … E-1, then come seeds, then children
_REMEMBERED = 64  # parents' genomes kept in memory
_IN_FLIGHT = 2  # the engine works on one child while the sandbox finishes another


async def evolve(
    recipe: Recipe,
    recipe_folder: Path,
    out: Path,
    observer: Observer | None = None,
    *,
    seeds: Seeds | None = None,
) -> None:
    """Run a recipe into the run directory *out*, or carry on with the run that is there.

    Args:
        recipe: What to do.
        recipe_folder: Where the recipe's relative paths start.
        out: The run directory.
        observer: Told what happens.
        seeds: Elites of an earlier run, offered to the archives after the experts.

    Raises:
        UserError: Bad input; nothing was written.
        RunError: Disk, sandbox or another process; what was evaluated is kept.
        Stopped: Interrupted; what was evaluated is kept.
    """
    observer = observer or Silent()
    observer.phase("opening")
    with open_directory(out):
        refuse_other_recipe(out, recipe)
        pins = pins_of(read_manifest(out))
        async with open_workbench(
            recipe, recipe_folder, run=out, pins=pins, note=observer.note
        ) as bench:
            refuse_twins(bench.basis.experts)
            moved = seeds.moved(bench.basis) if seeds else []
            check_space(out, bench, count_individuals(out) - len(moved))
            observer = Logged(observer, out)
            created = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = {**bench.manifest(), "folder": str(recipe_folder), "created": created}
            if seeds:
                manifest |= {"seeds": seeds.record()}
            for line in agree(out, manifest):
                observer.note(f"differs from the last session: {line}")
            if seeds:
                seeds.save(out)
                observer.note(f"{len(moved)} elites of {seeds.source} to begin with")
            lineages = [(one.genome, seeds.lineage(one.seed)) for one in moved if seeds]
            write_layout(out, bench.basis)
            journal = Journal(out, create=True)
            try:
                with _stop_on_interrupt(observer) as stop:
                    await _Run(bench, journal, out, observer, stop, lineages).go()
            except UserError:
                if not journal.told():  # a mistake shown by the very first evaluations
                    discard(out)
                raise
            finally:
                journal.close()


class _Run:
    def __init__(
        self,
        bench: Workbench,
        journal: Journal,
        folder: Path,
        observer: Observer,
        stop: asyncio.Event,
        seeds: Sequence[tuple[Genome, dict[str, Any]]],
    ) -> None:
        self._bench, self._journal, self._folder = bench, journal, folder
        self._seeds, self._first = seeds, len(bench.recipe.experts) + len(seeds)
        self._observer, self._stop = observer, stop
        self._recipe, self._basis = bench.recipe, bench.basis
        self._pace = Pace()
        self._genomes: dict[int, Genome] = {}
        self._spent: dict[str, float] = {}
        self._merges_of: dict[int, tuple[str, ...]] = {}
        self._said_short = False

    async def go(self) -> None:
        for judged in self._journal.verdicts():
            self._bench.evaluator.recall(judged)
        self._bench.evaluator.answers = self._journal.measurements
        if self._bench.merges is not None:
            self._bench.merges.remove_debris()
        await self._experts()
        cycle = self._cycle()
        await self._children(cycle)
        finishing = Finish(
            self._bench, self._journal, cycle, self._folder, self._observer, self._stop
        )
        await finishing.go()
        self._clear_merges(cycle)

    async def _experts(self) -> None:
        """Evaluate base, experts and seeds, and offer all but the base to every archive."""
        self._observer.phase("experts")
        layout, hash_ = self._basis.layout, self._basis.hash
        known = self._journal.ids()
        if BASE not in known:
            base = Genome.of_base(hash_, layout)
            await self._evaluate(BASE, Role.BASE, "base", base)
        for number, name in enumerate(self._recipe.experts):
            self._leave_if_asked()
            if number not in known:
                genome = Genome.of_expert(hash_, layout, number)
                await self._evaluate(number, Role.EXPERT, name, genome)
        if not self._journal.told():
            for skill in self._recipe.skills:
                if not any(scores[skill] for scores in expert_scores(self._journal)):
                    raise UserError(
                        "every expert scores 0 on the optimisation samples",
                        where=f"skills.{skill}",
                        remedy="check the task's prompt and metric, or add an abler expert",
                    )
        for number, (genome, lineage) in enumerate(self._seeds, len(self._recipe.experts)):
            self._leave_if_asked()
            if number not in known:
                name = f"elite {lineage['from']['individual']}"
                await self._evaluate(number, Role.SEED, name, genome, lineage=lineage)
        if not self._journal.told():
            self._journal.tell(range(self._first))

    def _cycle(self) -> Cycle:
        scores = expert_scores(self._journal)
        cycle = make_cycle(self._recipe, scores)
        for _ in replay(cycle, self._recipe, self._journal):
            pass
        table = [vector(row, self._recipe) for row in scores]
        self._skill_expert = skill_experts(np.array(table))
        return cycle

    async def _children(self, cycle: Cycle) -> None:
        self._observer.phase("children")
        step = self._recipe.search.children_per_step
        generations = -(-self._recipe.search.children // step)
        self._made, self._total = len(self._journal.told()) - self._first, generations * step
        self._clear_merges(cycle)
        for generation in range(self._made // step, generations):
            proposals = cycle.ask(generation, step, self._first + generation * step)
            known = self._journal.ids()
            missing = [proposal for proposal in proposals if proposal.individual not in known]
            self._made += len(proposals) - len(missing)
            await self._evaluate_all(missing, cycle, last=generation * step + step)
            self._journal.tell([proposal.individual for proposal in proposals])
            for proposal in proposals:
                scores = self._journal.scores_of(proposal.individual, "optimisation")
                cycle.tell(proposal.individual, vector(scores, self._recipe))
            self._clear_merges(cycle)
            self._tell_progress(proposals[-1].skill, cycle)

    async def _evaluate_all(self, proposals: list[Proposal], cycle: Cycle, *, last: int) -> None:
        """Evaluate children of one generation; after a failure no further one is begun."""
        gate, failures = asyncio.Semaphore(_IN_FLIGHT), list[Exception]()

        async def one(proposal: Proposal) -> None:
            async with gate:
                if failures:
                    return
                try:
                    self._leave_if_asked()
                    await self._child(proposal)
                except Exception as error:
                    failures.append(error)
                    return
            self._made += 1
            self._pace.tick(time.monotonic())
            if self._made < last:  # the last one is told with the archives it changed
                self._tell_progress(proposal.skill, cycle)

        await asyncio.gather(*(one(proposal) for proposal in proposals))
        if failures:
            raise min(failures, key=lambda error: isinstance(error, Stopped))

    async def _child(self, proposal: Proposal) -> None:
        mother, father = (self._genome(parent) for parent in proposal.parents)
        expert = self._skill_expert[proposal.skill]
        genome, lineage = make_child(
            proposal,
            (mother, father),
            variation=self._recipe.variation,
            basis=self._basis,
            expert=expert,
            seed=self._recipe.seed,
        )
        names = {
            "skill": list(self._recipe.skills)[proposal.skill],
            "expert": list(self._recipe.experts)[expert],
        }
        store = self._bench.merges
        async with present(store, genome):
            if store is not None:  # what it must come out as, should it be made again
                (made,) = (m for m in genome.merges if m.id == lineage["crossover"]["merge"])
                lineage["crossover"]["digest"] = store.digest(made)
            await self._evaluate(
                proposal.individual,
                Role.CHILD,
                f"child {proposal.individual}",
                genome,
                generation=proposal.generation,
                lineage=names | lineage,
                parents=proposal.parents,
            )

    async def _evaluate(
        self,
        number: int,
        role: Role,
        name: str,
        genome: Genome,
        *,
        generation: int | None = None,
        lineage: dict[str, Any] | None = None,
        parents: Sequence[int] = (),
    ) -> None:
        evaluation = await self._bench.evaluator.evaluate(
            Candidate(number, genome), "optimisation", parents=parents
        )
        spent = self._spent_since()
        self._journal.add(
            Individual(
                id=number,
                role=role,
                name=name,
                genome=genome.to_bytes(),
                genome_hash=genome.hash,
                generation=generation,
                lineage=lineage or {},
                seconds={"total": evaluation.seconds + spent.get("merge", 0.0), **spent},
            ),
            evaluation.measurements,
        )

    def _genome(self, number: int) -> Genome:
        if number not in self._genomes:
            self._genomes[number] = Genome.from_bytes(self._journal.individual(number).genome)
            while len(self._genomes) > _REMEMBERED:
                del self._genomes[next(iter(self._genomes))]
        return self._genomes[number]

    def _clear_merges(self, cycle: Cycle) -> None:
        """Keep the merges that elites weigh, and of others what the budget allows."""
        store = self._bench.merges
        if store is None:
            return
        needed: set[str] = set()
        elites = {n for archive in cycle.archives for n in archive.elites.individuals.tolist()}
        for number in elites:
            if number not in self._merges_of:
                merges = self._genome(number).merges
                self._merges_of[number] = tuple(merge.id for merge in merges)
            needed.update(self._merges_of[number])
        if store.keep(needed) and not self._said_short:
            self._said_short = True
            self._observer.note(
                f"the elites' merges take more than genome.disk, {self._recipe.genome.disk}; "
                "the oldest are cleared and made again when needed"
            )

    def _spent_since(self) -> dict[str, float]:
        """Seconds of merging, materialising, generating and executing since the last call."""
        evaluator, store = self._bench.evaluator, self._bench.merges
        now = {**self._bench.engine.seconds, "execute": evaluator.execute_seconds}
        now |= {"merge": store.seconds} if store is not None else {}
        spent = {key: value - self._spent.get(key, 0.0) for key, value in now.items()}
        self._spent = now
        return spent

    def _leave_if_asked(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def _tell_progress(self, skill: int, cycle: Cycle) -> None:
        evaluator, names = self._bench.evaluator, list(self._recipe.skills)
        pace, left = self._pace.per_minute(), self._total - self._made
        answers = evaluator.executed + evaluator.verdicts.reused
        summaries = [archive.summary for archive in cycle.archives]
        self._observer.progress(
            Progress(
                children=self._made,
                total=self._total,
                skill=names[skill],
                best={n: s.best or 0.0 for n, s in zip(names, summaries, strict=True)},
                mean={n: s.mean or 0.0 for n, s in zip(names, summaries, strict=True)},
                average=best_average(cycle),
                coverage=sum(summary.coverage for summary in summaries) / len(summaries),
                qd_score=sum(summary.qd_score for summary in summaries),
                per_minute=pace,
                eta_seconds=60 * left / pace if pace else None,
                reused=evaluator.verdicts.reused / answers if answers else 0.0,
            )
        )


@contextmanager
def _stop_on_interrupt(observer: Observer) -> Iterator[asyncio.Event]:
    """First SIGINT or SIGTERM: finish the children in flight. Second: as soon as a batch ends."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    task = asyncio.current_task()

    def ask() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        else:
            observer.note("stopping after the children in flight; once more to give them up")
            stop.set()

    caught = []
    for name in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(name, ask)
            caught.append(name)
        except (NotImplementedError, RuntimeError, ValueError):  # not in the main thread
            pass
    try:
        yield stop
    finally:
        for name in caught:
            loop.remove_signal_handler(name)
