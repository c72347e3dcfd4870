"""The command that takes things back from the Hub: pull."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cqd_hub.cli.options import JsonOption, QuietOption
from cqd_hub.errors import UserError

if TYPE_CHECKING:
    from cqd_hub.pull.published import Published


def pull(
    archive: Annotated[
        str, typer.Argument(metavar="NS/RUN", help="An archive: ns/run, ns/run@revision, hf://…")
    ],
    who: Annotated[
        str | None,
        typer.Argument(
            metavar="[WHO]",
            help="An id, best, best:SKILL, aggregate, base or a name; the elites are listed "
            "without it.",
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="A folder that does not exist yet [default: RUN-WHO]."),
    ] = None,
    form: Annotated[
        Literal["checkpoint", "adapter", "mergekit", "genome"],
        typer.Option("--form", help="What to make of it; a genome needs no models."),
    ] = "checkpoint",
    published: Annotated[
        bool,
        typer.Option("--published", help="The model as it was pushed, instead of rebuilding it."),
    ] = False,
    best: Annotated[
        str | None,
        typer.Option("--best", metavar="SKILL|average", help="Instead of WHO: the best elite."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="CONDITION", help="Such as 'db>=0.4'; repeatable."),
    ] = None,
    recipe: Annotated[
        bool, typer.Option("--recipe", help="The run's recipe and tasks, to evolve anew.")
    ] = False,
    trust: Annotated[
        list[str] | None,
        typer.Option("--trust", metavar="SHA256", help="--recipe: a task file that you have read."),
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", help="Folder of the base, instead of the Hub's.")
    ] = None,
    expert: Annotated[
        list[str] | None,
        typer.Option("--expert", metavar="NAME=DIR", help="Folder of an expert; repeatable."),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """List what an archive on the Hub holds, or take one individual of it.

    It is rebuilt from its genome and the models that the archive names, and checked against what
    was published. Nothing that comes with it is executed.

    Examples:

        cqd-hub pull me/quickstart

        cqd-hub pull me/quickstart best --to my-model

        cqd-hub pull me/quickstart --best average --where 'db>=0.4' --form adapter --to my-adapter

        cqd-hub pull me/quickstart 57 --base ./base --expert coding=./coding --to rebuilt

        cqd-hub pull me/quickstart --recipe --to again
    """
    from cqd_hub.hub.client import Hub
    from cqd_hub.pull.published import Published, clean
    from cqd_hub.pull.select import find

    def note(line: str) -> None:
        if not quiet:
            print(f"  {clean(line, 1000)}", file=sys.stderr, flush=True)

    hub = Hub(note=note)
    opened = Published(archive, hub, note=note)
    if recipe:
        _recipe(opened, to, trust or [], note=note, as_json=as_json)
        return
    if trust:
        raise UserError("means nothing without --recipe", where="--trust")
    if who is None and best is None:
        _list(opened, where or [], as_json=as_json)
        return
    from cqd_hub.pull.individual import pull as take
    from cqd_hub.pull.individual import pull_published
    from cqd_hub.pull.rebuild import Places

    person = find(who, opened, best=best, where=where or [])
    note(f"{clean(person.name)} ({clean(person.role)}, id {person.id}) of {opened}")
    if published:
        made = pull_published(opened, person, to, hub, note=note)
    else:
        label = re.sub(r"[^A-Za-z0-9_.-]+", "-", who or f"best-{best}")
        target = to or Path(f"{opened.source.repo.partition('/')[2]}-{label}")
        places = Places(base, dict(_expert(text) for text in expert or []))
        made = take(opened, person, target, hub, form=form, places=places, note=note)
    note(f"verified by {made.verified}")
    if as_json:
        record = {
            "path": str(made.path),
            "form": "published" if published else form,
            "id": person.id,
            "name": person.name,
            "genome": person.genome_hash,
            "source": str(opened),
            "verified": made.verified,
        }
        print(json.dumps(record | made.details))
    else:
        print(made.path)


def _recipe(
    opened: Published, to: Path | None, trust: list[str], *, note: Any, as_json: bool
) -> None:
    from cqd_hub.pull.individual import pull_recipe
    from cqd_hub.pull.published import clean
    from cqd_hub.pull.trust import CodeFound

    target = to or Path(f"{opened.source.repo.partition('/')[2]}-recipe")
    try:
        path = pull_recipe(opened, target, trusted=trust, note=note)
    except CodeFound as found:
        for line in found.content.splitlines():
            print(f"    {clean(line, 2000)}", file=sys.stderr)
        raise
    print(json.dumps({"path": str(path), "source": str(opened)}) if as_json else path)
    if not as_json:
        print(f"to run it: cqd-hub evolve {shlex.quote(str(path))}", file=sys.stderr)


def _expert(text: str) -> tuple[str, Path]:
    name, equals, place = text.partition("=")
    if not equals or not name or not place:
        raise UserError(f"{text!r} is not NAME=DIR", where="--expert")
    return name, Path(place)


def _list(opened: Published, where: list[str], *, as_json: bool) -> None:
    from cqd_hub.pull.individual import elites_table
    from cqd_hub.pull.published import clean

    rows = elites_table(opened, where)
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    skills = opened.head.skills
    table = [["archive", "cell", "id", "average", *skills, "size", "called"]]
    for row in rows:
        cell = "" if row["cell"] is None else "-".join(map(str, row["cell"]))
        scores = [f"{100 * row['scores'][skill]:.1f}" for skill in skills]
        average, size = f"{100 * row['average']:.1f}", f"{row['bytes'] / 1e3:.0f} kB"
        called = " ".join(row["called"])
        table.append([row["archive"], cell, str(row["id"]), average, *scores, size, called])
    widths = [max(len(line[n]) for line in table) for n in range(len(table[0]))]
    left = (0, 1, len(table[0]) - 1)
    for line in table:
        cells = [
            text.ljust(width) if n in left else text.rjust(width)
            for n, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        print(clean("  ".join(cells).rstrip(), 1000))
    told = opened.head.told
    print(
        f"\n{opened}: {len(rows)} elites of {clean(opened.head.name)} after {told} individuals; "
        "scores in % on the optimisation samples, which the search saw; size is the genome's",
        file=sys.stderr,
    )
    if rows:
        repo = shlex.quote(opened.source.repo)
        print(f"to take one: cqd-hub pull {repo} {rows[0]['id']} --to my-model", file=sys.stderr)
