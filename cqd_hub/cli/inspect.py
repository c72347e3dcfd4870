"""Commands that look: eval, report."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cqd_hub.cli.options import JsonOption, OverrideOption, RunArgument
from cqd_hub.cli.panel import score
from cqd_hub.cli.tables import print_rows

if TYPE_CHECKING:
    from cqd_hub.statistics import Interval


def evaluate(
    what: Annotated[
        str, typer.Argument(metavar="RECIPE|RUN_DIR", help="A recipe, or a run directory.")
    ],
    who: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WHO]...",
            help="Of a recipe: base, experts, models. Of a run: ids, best, best:SKILL, …",
        ),
    ] = None,
    split: Annotated[
        Literal["optimisation", "validation", "test"], typer.Option("--split", help="Samples.")
    ] = "validation",
    overrides: OverrideOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score models on a recipe's skills, with 95 % intervals.

    Examples:

        cqd-hub eval quickstart

        cqd-hub eval recipe.yaml base ./another-finetune ns/finetune@v2 --split validation

        cqd-hub eval runs/quickstart best best:coding 57 --split test
    """
    from cqd_hub.run.evaluate import evaluate_individuals, evaluate_models

    def note(line: str) -> None:
        print(f"  {line}", file=sys.stderr)

    if (Path(what) / "manifest.json").exists():
        rows = asyncio.run(evaluate_individuals(Path(what), who or [], split, note=note))
    else:
        from cqd_hub.recipe import Recipe, find_recipe, load_yaml

        path = find_recipe(what)
        recipe = load_yaml(path, Recipe, overrides or [])
        rows = asyncio.run(
            evaluate_models(recipe, path.resolve().parent, who or [], split, note=note)
        )
    if as_json:
        for row in rows:
            skills = {skill: interval._asdict() for skill, interval in row.skills.items()}
            record = {
                "name": row.name,
                "split": split,
                "skills": skills,
                "average": row.average._asdict(),
            }
            print(json.dumps(record))
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        cells = [f"{skill} {_cell(interval)}" for skill, interval in row.skills.items()]
        print(f"{row.name:<{width}}  {'  '.join(cells)}  average {_cell(row.average)}")


def report(run: RunArgument, as_json: JsonOption = False) -> None:
    """Draw the figures and the page of a run, finished or not, and print its table.

    Examples:

        cqd-hub report runs/quickstart
    """
    from cqd_hub.report import build_report, results_table

    made = build_report(run)
    print_rows(results_table(run), as_json=as_json)
    print(f"\npage: {made.page}", file=sys.stderr)


def _cell(interval: Interval) -> str:
    mean, low, high = map(score, interval[:3])
    return f"{mean} % [{low}, {high}] n={interval.n:.0f}"
