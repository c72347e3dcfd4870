"""The same from Python, in five lines.

import cqd_hub
run = cqd_hub.evolve("recipe.yaml", out="runs/first", children=100)
for row in run.table():
    print(row.label, row.average)
run.export("best", to="my-model")
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from cqd_hub.errors import UserError
from cqd_hub.recipe import Recipe, find_recipe, load_yaml

if TYPE_CHECKING:
    from cqd_hub.report import Row
    from cqd_hub.run.journal import Individual
    from cqd_hub.run.plan import Plan
    from cqd_hub.run.progress import Observer

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Run:
    """A run directory."""

    folder: Path

    def table(self) -> list[Row]:
        """The result rows, with 95 % intervals."""
        from cqd_hub.report import results_table

        return results_table(self.folder)

    def individual(self, who: str) -> Individual:
        """An individual: an id, an expert's name, ``best``, ``best:SKILL`` or ``aggregate``."""
        from cqd_hub.run.directory import read_recipe
        from cqd_hub.run.journal import Journal
        from cqd_hub.run.select import find

        recipe, journal = read_recipe(self.folder), Journal(self.folder)
        try:
            return find(who, self.folder, recipe, journal)
        finally:
            journal.close()

    def export(
        self,
        who: str,
        to: str | Path,
        *,
        form: Literal["checkpoint", "adapter", "mergekit", "crossover", "gguf"] = "checkpoint",
        **options: Any,
    ) -> Path:
        """Write an individual as a model that other tools load; returns what was written.

        *options* are those of `cqd_hub.run.export.ExportOptions`.
        """
        from cqd_hub.run.export import ExportOptions, export_individual

        chosen = ExportOptions(**options)
        return export_individual(self.folder, who, Path(to), form=form, options=chosen).path


def evolve(
    recipe: str | Path | Recipe,
    *,
    out: str | Path | None = None,
    children: int | None = None,
    seed: int | None = None,
    observer: Observer | None = None,
) -> Run:
    """Run a recipe, or carry on with the run in *out*.

    Args:
        recipe: A file, a shipped recipe's name, or a `Recipe` whose relative paths start from the
            working folder.
        out: The run directory; ``runs/<name>`` by default.
        children: Overrides the recipe file's.
        seed: Overrides the recipe file's.
        observer: Told what happens.

    Raises:
        UserError: Bad input; nothing was written.
        RunError: Disk, sandbox or another process; what was evaluated is kept.
        Stopped: Interrupted (`cqd_hub.run.progress`); what was evaluated is kept.
    """
    from cqd_hub.report import build_report
    from cqd_hub.run.evolve import evolve as run

    loaded, place = _load(recipe, children=children, seed=seed)
    folder = Path(out) if out is not None else Path("runs") / loaded.name
    _outside_loops(lambda: asyncio.run(run(loaded, place, folder, observer)))
    build_report(folder)
    return Run(folder)


def plan(
    recipe: str | Path | Recipe,
    *,
    children: int | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Say what a run will take before any weights are downloaded: memory, disk, time, and engine.

    Measures this machine for a few seconds. Times are seconds, sizes bytes.

    Args:
        recipe: See `evolve`.
        children: Overrides the recipe file's.
        note: Called with a line for what takes time.

    Raises:
        UserError: Bad input, or models that do not fit the device: with the arithmetic.
        RunError: The Hub does not answer.
    """
    from cqd_hub.run.plan import make_plan

    loaded, place = _load(recipe, children=children)
    return _outside_loops(lambda: make_plan(loaded, place, note=note))


def _load(
    recipe: str | Path | Recipe, *, children: int | None, seed: int | None = None
) -> tuple[Recipe, Path]:
    """A recipe, and where its relative paths start."""
    changes = [] if children is None else [f"search.children={children}"]
    changes += [] if seed is None else [f"seed={seed}"]
    if isinstance(recipe, Recipe):
        if changes:
            raise UserError("children and seed override a recipe file; set them in the Recipe")
        return recipe, Path.cwd()
    path = find_recipe(str(recipe))
    return load_yaml(path, Recipe, changes), path.resolve().parent


def _outside_loops(work: Callable[[], _Result]) -> _Result:
    """Call *work*, in a thread of its own where a loop is running already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(work).result()


def open_run(folder: str | Path) -> Run:
    """Open the run directory of an earlier `evolve`.

    Raises:
        UserError: It is none.
    """
    if not (Path(folder) / "journal.sqlite").exists():
        raise UserError(
            "is no run directory", where=str(folder), remedy="name one made by `cqd-hub evolve`"
        )
    return Run(Path(folder))
