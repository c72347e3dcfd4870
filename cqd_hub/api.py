"""The same from Python, in five lines.

import cqd_hub
run = cqd_hub.evolve("recipe.yaml", out="runs/first", children=100)
for row in run.table():
    print(row.label, row.average)
run.export("best", to="my-model")
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cqd_hub.errors import UserError
from cqd_hub.recipe import Recipe, load_yaml

if TYPE_CHECKING:
    from cqd_hub.report import Row
    from cqd_hub.run.journal import Individual
    from cqd_hub.run.progress import Observer


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
        form: Literal["checkpoint", "adapter", "mergekit"] = "checkpoint",
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        rank: int | None = None,
    ) -> Path:
        """Write an individual as a model that other tools load; returns *to*."""
        from cqd_hub.run.export import export_individual

        for _ in export_individual(self.folder, who, Path(to), form=form, dtype=dtype, rank=rank):
            pass
        return Path(to)


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
        recipe: A file, or a `Recipe` whose relative paths start from the working folder.
        out: The run directory; ``runs/<name>`` by default.
        children: Overrides the recipe's.
        seed: Overrides the recipe's.
        observer: Told what happens.

    Raises:
        UserError: Bad input; nothing was written.
        RunError: Disk, sandbox or another process; what was evaluated is kept.
    """
    from cqd_hub.run.evolve import evolve as run

    if isinstance(recipe, Recipe):
        loaded, place = recipe, Path.cwd()
    else:
        loaded, place = load_yaml(Path(recipe), Recipe), Path(recipe).resolve().parent
    changes: dict[str, Any] = {}
    if children is not None:
        changes["search"] = loaded.search.model_copy(update={"children": children})
    if seed is not None:
        changes["seed"] = seed
    loaded = loaded.model_copy(update=changes)
    folder = Path(out) if out is not None else Path("runs") / loaded.name
    asyncio.run(run(loaded, place, folder, observer))
    return Run(folder)


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
