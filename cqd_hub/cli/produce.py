"""Commands that make something: evolve, train, export."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cqd_hub.cli.observers import make_observer
from cqd_hub.cli.options import JsonOption, OverrideOption, QuietOption, RecipeArgument, RunArgument
from cqd_hub.cli.tables import print_rows


def evolve(
    recipe: RecipeArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run directory [default: runs/NAME].")
    ] = None,
    children: Annotated[
        int | None, typer.Option("--children", min=0, help="Same as --set search.children=N.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same as --set seed=N.")] = None,
    overrides: OverrideOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Evolve a recipe's experts; the same command resumes a run that was stopped.

    Examples:

        cqd-hub evolve quickstart

        cqd-hub evolve recipe.yaml --out runs/first --children 400

        cqd-hub evolve recipe.yaml --seed 1 --set variation.mutation.w_max=0.2 --json
    """
    from cqd_hub.recipe import Recipe, find_recipe, load_yaml

    path = find_recipe(recipe)
    changes = list(overrides or [])
    changes += [f"search.children={children}"] if children is not None else []
    changes += [f"seed={seed}"] if seed is not None else []
    loaded = load_yaml(path, Recipe, changes)
    folder = out or Path("runs") / loaded.name
    from cqd_hub.report import build_report, results_table
    from cqd_hub.run.evolve import evolve as run
    from cqd_hub.run.progress import Stopped

    try:
        with make_observer(quiet=quiet, as_json=as_json) as observer:
            asyncio.run(run(loaded, path.resolve().parent, folder, observer))
    except (Stopped, KeyboardInterrupt, asyncio.CancelledError):
        print(f"stopped; to go on: {_again()}", file=sys.stderr)
        raise typer.Exit(130) from None
    page = build_report(folder)
    print_rows(results_table(folder), as_json=as_json)
    if not quiet and not as_json:
        print(f"\npage:   {page.page}", file=sys.stderr)
        print(
            f"export: cqd-hub export {shlex.quote(str(folder))} best --to my-model", file=sys.stderr
        )


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A training recipe file.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the model [default: the recipe's]."),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a base model or an expert (full fine-tune or LoRA) from a training recipe.

    Examples:

        cqd-hub train recipes/quickstart/train-coding.yaml --out my-coding-expert
    """
    from cqd_hub.training import train as run

    def show(step: int, steps: int, loss: float) -> None:
        print(f"  step {step}/{steps}  loss {loss:.4f}", file=sys.stderr, flush=True)

    made = run(recipe, out=out, progress=None if quiet else show)
    print(json.dumps({"path": str(made)}) if as_json else made)


def export(
    run: RunArgument,
    who: Annotated[
        str,
        typer.Argument(
            metavar="WHO", help="An id, base, an expert's name, best, best:SKILL or aggregate."
        ),
    ],
    to: Annotated[Path, typer.Option("--to", help="A folder that does not exist yet.")],
    form: Annotated[
        Literal["checkpoint", "adapter", "mergekit"],
        typer.Option("--as", help="Full model, PEFT LoRA adapter, or mergekit YAML."),
    ] = "checkpoint",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option("--dtype", help="Of a checkpoint's tensors [default: the base's]."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Of an adapter [default: exact].")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one individual of a run as a model that other tools load.

    Examples:

        cqd-hub export runs/quickstart best --to my-model

        cqd-hub export runs/quickstart 57 --to my-adapter --as adapter --rank 32

        cqd-hub export runs/quickstart best:coding --to my-merge --as mergekit
    """
    from cqd_hub.run.export import export_individual

    def note(line: str) -> None:
        print(line, file=sys.stderr)

    made = export_individual(run, who, to, form=form, dtype=dtype, rank=rank, note=note)
    if as_json:
        print(json.dumps({"path": str(to), "id": made.id, "genome": made.genome_hash}))
    else:
        print(to)


def _again() -> str:
    return shlex.join(["cqd-hub", *sys.argv[1:]])
