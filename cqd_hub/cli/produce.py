"""Commands that make something: evolve, train, export."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cqd_hub.cli.called import command
from cqd_hub.cli.hub import AcceptOption
from cqd_hub.cli.observers import make_observer
from cqd_hub.cli.options import JsonOption, OverrideOption, QuietOption, RecipeArgument, RunArgument
from cqd_hub.cli.tables import print_rows
from cqd_hub.errors import UserError


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
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="NS/RUN", help="Begin with the elites of an archive or run directory."
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="NS/RUN", help="Publish it on the Hub as it goes."),
    ] = None,
    push_every: Annotated[
        int | None,
        typer.Option("--push-every", min=1, help="Children from one commit to the next."),
    ] = None,
    push_minutes: Annotated[
        float | None,
        typer.Option("--push-minutes", min=0, help="Or minutes [default: 10]."),
    ] = None,
    accept_licence: AcceptOption = False,
    executor: Annotated[
        str,
        typer.Option(
            "--executor",
            metavar="WHO",
            help="local, processes, ray or ray://HOST:PORT [default: local; with several GPUs a "
            "process for each].",
        ),
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Worker processes or Ray actors.")
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Evolve a recipe's experts; the same command resumes a run that was stopped.

    Examples:

        cqd-hub evolve quickstart

        cqd-hub evolve recipe.yaml --out runs/first --children 400

        cqd-hub evolve recipe.yaml --seed 1 --set variation.mutation.w_max=0.2 --json

        cqd-hub evolve with-one-more-expert.yaml --from me/quickstart

        cqd-hub evolve recipe.yaml --push me/first --push-every 100

        cqd-hub evolve recipe.yaml --executor ray://head:10001
    """
    from cqd_hub.recipe import Recipe, find_recipe, load_yaml

    path = find_recipe(recipe)
    changes = list(overrides or [])
    changes += [f"search.children={children}"] if children is not None else []
    changes += [f"seed={seed}"] if seed is not None else []
    loaded = load_yaml(path, Recipe, changes)
    folder = out or Path("runs") / loaded.name
    from cqd_hub.pull.seeds import find_seeds
    from cqd_hub.report import build_report, results_table
    from cqd_hub.run.evolve import evolve as run
    from cqd_hub.run.progress import Stopped

    uploader = None
    if push is not None:
        from cqd_hub.publish.uploader import Publishing, Uploader
    elif push_every is not None or push_minutes is not None:
        raise UserError(
            "says when to publish, not where", where="--push-…", remedy="add --push NS/RUN"
        )
    try:
        with make_observer(quiet=quiet, as_json=as_json) as observer:
            seeds = find_seeds(source, folder, note=observer.note)
            if push is not None:
                uploader = Uploader(
                    folder,
                    push,
                    every=push_every,
                    minutes=push_minutes,
                    options=["--accept-licence"] if accept_licence else [],
                    note=observer.note,
                )
                uploader.check()
                observer = Publishing(observer, uploader)
            asyncio.run(
                run(
                    loaded,
                    path.resolve().parent,
                    folder,
                    observer,
                    seeds=seeds,
                    executor=executor,
                    workers=workers,
                )
            )
    except (Stopped, KeyboardInterrupt, asyncio.CancelledError):
        print(f"stopped; to go on: {command(*sys.argv[1:])}", file=sys.stderr)
        if uploader is not None:
            print(f"to publish what there is: {uploader.command}", file=sys.stderr)
        raise typer.Exit(130) from None
    page = build_report(folder)
    print_rows(results_table(folder), as_json=as_json)
    if uploader is not None:
        uploader.finish(sys.stderr, quiet=quiet)
    if not quiet and not as_json:
        print(f"\npage:   {page.page}", file=sys.stderr)
        print(f"export: {command('export', folder, 'best', '--to', 'my-model')}", file=sys.stderr)


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

    def note(line: str) -> None:
        print(f"  {line}", file=sys.stderr, flush=True)

    made = run(recipe, out=out, progress=None if quiet else show, note=note)
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
        Literal["checkpoint", "adapter", "mergekit", "crossover", "gguf"],
        typer.Option(
            "--form",
            help="Full model; PEFT LoRA adapter; mergekit YAML over base and experts, or over "
            "a child's parents; GGUF file.",
        ),
    ] = "checkpoint",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(
            "--dtype", help="Of the weights [default: the base's; float32 for an adapter]."
        ),
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option("--shard-size", help="checkpoint: largest file [default: 5GB].")
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", min=1, help="adapter: of every module [default: exact]."),
    ] = None,
    error: Annotated[
        float | None,
        typer.Option("--error", help="adapter: smallest ranks with this relative error, as 0.01."),
    ] = None,
    consumer: Annotated[
        Literal["peft", "vllm"] | None,
        typer.Option(
            "--for", help="adapter: vllm keeps to linear layers and one rank [default: peft]."
        ),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="adapter: leave out what has no place in one, and say so."),
    ] = False,
    purpose: Annotated[
        Literal["attach", "merge"] | None,
        typer.Option("--purpose", help="adapter of tied embeddings: stays attached, or is merged."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="adapter, mergekit: name of the base [default: its path]."),
    ] = None,
    outtype: Annotated[
        Literal["auto", "f32", "f16", "bf16", "q8_0"] | None,
        typer.Option("--outtype", help="gguf: as llama.cpp's converter knows it [default: auto]."),
    ] = None,
    converter: Annotated[
        Path | None,
        typer.Option(
            "--converter",
            help="gguf: convert_hf_to_gguf.py or its folder [default: $LLAMA_CPP, $PATH].",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one individual of a run as a model that other tools load.

    The folder appears whole or not at all; the same command goes on with a killed export.

    Examples:

        cqd-hub export runs/quickstart best --to my-model

        cqd-hub export runs/quickstart 57 --to my-adapter --form adapter --error 0.01

        cqd-hub export runs/quickstart best --to served --form adapter --for vllm --dtype bfloat16

        cqd-hub export runs/quickstart best:coding --to my-merge --form mergekit

        cqd-hub export runs/quickstart 57 --to how --form crossover

        cqd-hub export runs/quickstart best --to my-gguf --form gguf --converter ~/llama.cpp
    """
    from cqd_hub.run.export import ExportOptions, export_individual

    def note(line: str) -> None:
        print(line, file=sys.stderr)

    options = ExportOptions(
        dtype=dtype,
        shard_size=shard_size,
        rank=rank,
        error=error,
        consumer=consumer,
        partial=partial,
        purpose=purpose,
        base=base,
        outtype=outtype,
        converter=converter,
    )
    made = export_individual(run, who, to, form=form, options=options, note=note)
    if as_json:
        record = {
            "path": str(made.path),
            "form": form,
            "id": made.individual.id,
            "genome": made.individual.genome_hash,
        }
        print(json.dumps(record | made.details))
    else:
        print(made.path)
