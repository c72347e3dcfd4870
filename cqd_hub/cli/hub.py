"""Commands that publish: push."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cqd_hub.cli.options import JsonOption, QuietOption, RunArgument

if TYPE_CHECKING:
    from cqd_hub.publish.push import Part, Pushed

AcceptOption = Annotated[
    bool,
    typer.Option(
        "--accept-licence", help="Publish in spite of licences that conflict and gated parents."
    ),
]


def push(
    run: RunArgument,
    to: Annotated[str, typer.Option("--to", metavar="NS/RUN", help="Repository of the archive.")],
    elites: Annotated[
        str | None,
        typer.Option(
            "--elites",
            metavar="WHO,…",
            help="best, best:SKILL, cell:SKILL:3-7, aggregate, ids, or none [default: the chosen "
            "one, each skill's best and the aggregate of a finished run].",
        ),
    ] = None,
    form: Annotated[
        Literal["adapter", "checkpoint"] | None,
        typer.Option("--form", help="Of the elites [default: the adapter where it is small]."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="NS/NAME", help="The base, if the run had it as a folder."),
    ] = None,
    with_basis: Annotated[
        bool,
        typer.Option("--with-basis", help="Publish the factors, also where they exceed 100 MB."),
    ] = False,
    with_merges: Annotated[
        bool, typer.Option("--with-merges", help="Publish the merged children kept on disk.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see it [default: private].")
    ] = False,
    accept_licence: AcceptOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be created; write nothing.")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Publish a run on the Hub: its archive, its elites, and a collection of both.

    Again, it adds what is new; killed, the same command completes it. The token comes from
    `hf auth login` or HF_TOKEN.

    Examples:

        cqd-hub push runs/quickstart --to me/quickstart --dry-run

        cqd-hub push runs/quickstart --to me/quickstart

        cqd-hub push runs/quickstart --to me/quickstart --elites best,best:coding,57 --public
    """
    from cqd_hub.publish.push import PushOptions
    from cqd_hub.publish.push import push as publish

    options = PushOptions(
        elites=None if elites is None else [who.strip() for who in elites.split(",")],
        form=form,
        base=base,
        with_basis=with_basis,
        with_merges=with_merges,
        public=public,
        accept_licence=accept_licence,
    )

    def note(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr)

    done = publish(run, to, options=options, dry_run=dry_run, note=note)
    if as_json:
        print(json.dumps(asdict(done) | {"dry_run": dry_run}))
    else:
        _show(done, dry_run=dry_run)
        if not dry_run and not quiet:
            print(f"to use it: cqd-hub pull {shlex.quote(to)}", file=sys.stderr)


def _show(done: Pushed, *, dry_run: bool) -> None:
    if done.archive is not None:
        print(_line("archive", done.archive, dry_run=dry_run))
    for label, part in done.elites.items():
        print(_line(label, part, dry_run=dry_run))
    if done.collection is not None:
        print(f"collection  {done.collection}")
    elif done.collected:
        print("collection  would be created")


def _line(label: str, part: Part, *, dry_run: bool) -> str:
    place = f"datasets/{part.repo}" if part.kind == "dataset" else part.repo
    if not part.changed:
        state = "as it is"
    else:
        about = "about " if not part.files else f"{part.files} files, "
        state = f"{'would get ' if dry_run else ''}{about}{part.bytes / 1e6:.2f} MB"
    return f"{label:<10}  {place}  {state}"
