"""The main job: recipe to journal. Killed at any instant, it resumes with the same call."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cqd_hub.errors import UserError
from cqd_hub.genome import Genome, refuse_twins
from cqd_hub.genome.layout_file import write_layout
from cqd_hub.recipe import Recipe
from cqd_hub.run.archives import expert_scores, make_cycle, replay, vector
from cqd_hub.run.children import Children
from cqd_hub.run.directory import (
    agree,
    discard,
    open_directory,
    read_manifest,
    refuse_other_recipe,
)
from cqd_hub.run.executors import Executor, choose, common_manifest, open_executor
from cqd_hub.run.finish import Finish
from cqd_hub.run.journal import Journal, Role, count_individuals
from cqd_hub.run.lineup import Lineup
from cqd_hub.run.log import Logged
from cqd_hub.run.models import pins_of
from cqd_hub.run.plan import Took, is_planned, plan_of
from cqd_hub.run.progress import Observer, Silent, Stopped
from cqd_hub.run.recorder import Recorder
from cqd_hub.run.seeds import Seeds
from cqd_hub.run.space import asked, check_space
from cqd_hub.search import Cycle, skill_experts

BASE = -1  # the base's id; experts are 0 … E-1, then come seeds, then children


async def evolve(
    recipe: Recipe,
    recipe_folder: Path,
    out: Path,
    observer: Observer | None = None,
    *,
    seeds: Seeds | None = None,
    executor: str = "auto",
    workers: int | None = None,
) -> None:
    """Run a recipe into the run directory *out*, or carry on with the run that is there.

    Args:
        recipe: What to do.
        recipe_folder: Where the recipe's relative paths start.
        out: The run directory.
        observer: Told what happens.
        seeds: Elites of an earlier run, offered to the archives after the experts.
        executor: Who evaluates, see `cqd_hub.run.executors.choose`.
        workers: How many of them.

    Raises:
        UserError: Bad input; nothing was written.
        RunError: Disk, sandbox or another process; what was evaluated is kept.
        Stopped: Interrupted; what was evaluated is kept.
    """
    told: Observer = observer or Silent()
    told.phase("opening")
    choice = choose(executor, workers, recipe.evaluation.device)
    with open_directory(out):
        refuse_other_recipe(out, recipe)
        pins = pins_of(read_manifest(out))

        def note(line: str) -> None:
            told.note(line)  # whoever observes when it is said

        async with open_executor(choice, recipe, recipe_folder, run=out, pins=pins, note=note) as (
            lineup,
            staff,
        ):
            refuse_twins(lineup.basis.experts)
            moved = seeds.moved(lineup.basis) if seeds else []
            manifest = common_manifest(await staff.manifests())
            check_space(out, lineup, asked(manifest), count_individuals(out) - len(moved))
            told = Logged(told, out)
            created = datetime.now(UTC).isoformat(timespec="seconds")
            manifest |= {"folder": str(recipe_folder), "created": created}
            if seeds:
                manifest |= {"seeds": seeds.record()}
            for line in agree(out, manifest):
                told.note(f"differs from the last session: {line}")
            if seeds:
                seeds.save(out)
                told.note(f"{len(moved)} elites of {seeds.source} to begin with")
            lineages = [(one.genome, seeds.lineage(one.seed)) for one in moved if seeds]
            write_layout(out, lineup.basis)
            plan = None
            if not is_planned(out):
                plan = await plan_of(recipe, lineup.basis, lineup.skills, workers=staff.workers)
            took = Took(out, plan, here=choice.kind == "local")
            journal = Journal(out, create=True)
            try:
                with closing(took), _stop_on_interrupt(told) as stop:
                    await _Run(lineup, staff, journal, out, told, stop, lineages, took).go()
            except UserError:
                if not journal.told():  # a mistake shown by the very first evaluations
                    discard(out)
                raise
            finally:
                journal.close()


class _Run:
    def __init__(
        self,
        lineup: Lineup,
        executor: Executor,
        journal: Journal,
        folder: Path,
        observer: Observer,
        stop: asyncio.Event,
        seeds: Sequence[tuple[Genome, dict[str, Any]]],
        took: Took,
    ) -> None:
        self._lineup, self._executor = lineup, executor
        self._journal, self._folder = journal, folder
        self._seeds, self._first = seeds, len(lineup.recipe.experts) + len(seeds)
        self._observer, self._stop, self._took = observer, stop, took
        self._recipe, self._basis = lineup.recipe, lineup.basis
        self._recorder = Recorder(executor, journal)

    async def go(self) -> None:
        self._executor.recall(self._journal)
        if self._lineup.merges is not None:
            self._lineup.merges.remove_debris()
        self._observer.phase("experts")
        await self._experts()
        cycle, skill_expert = self._cycle()
        self._observer.phase("children")
        children = Children(
            self._lineup,
            self._executor,
            self._recorder,
            self._journal,
            cycle,
            skill_expert=skill_expert,
            first=self._first,
            observer=self._observer,
            stop=self._stop,
        )
        with self._took.children(children):
            await children.go()
        await Finish(
            self._lineup,
            self._executor,
            self._journal,
            cycle,
            self._folder,
            self._observer,
            self._stop,
        ).go()
        children.clear_merges()

    async def _experts(self) -> None:
        """Evaluate base, experts and seeds, and offer all but the base to every archive."""
        layout, hash_ = self._basis.layout, self._basis.hash
        known, total = self._journal.ids(), 1 + self._first
        done = sum(number in known for number in range(BASE, self._first))
        if done < total:
            self._observer.measured(done, total)

        async def add(*who: Any, **more: Any) -> None:
            nonlocal done
            await self._recorder.add(*who, **more)
            done += 1
            self._observer.measured(done, total)

        if BASE not in known:
            await add(BASE, Role.BASE, "base", Genome.of_base(hash_, layout))
        for number, name in enumerate(self._recipe.experts):
            self._leave_if_asked()
            if number not in known:
                await add(number, Role.EXPERT, name, Genome.of_expert(hash_, layout, number))
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
                await add(number, Role.SEED, name, genome, lineage=lineage)
        if not self._journal.told():
            self._journal.tell(range(self._first))

    def _cycle(self) -> tuple[Cycle, tuple[int, ...]]:
        """The archives as told so far, and per skill the expert that is best at it."""
        scores = expert_scores(self._journal)
        cycle = make_cycle(self._recipe, scores)
        for _ in replay(cycle, self._recipe, self._journal):
            pass
        table = [vector(row, self._recipe) for row in scores]
        return cycle, skill_experts(np.array(table))

    def _leave_if_asked(self) -> None:
        if self._stop.is_set():
            raise Stopped


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
