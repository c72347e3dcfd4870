"""The typer app and its one error handler."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from cqd_hub import __version__
from cqd_hub.errors import CqdHubError

app = typer.Typer(
    name="cqd-hub",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Evolve language models that hold several skills at once.",
    epilog="Start with `cqd-hub evolve quickstart`, or `cqd-hub doctor` to see what is missing.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _register() -> None:
    from cqd_hub.cli import create, hub, inspect, plan, produce, pull, sandbox

    commands: list[tuple[str, Callable[..., None]]] = [
        ("evolve", produce.evolve),
        ("plan", plan.plan),
        ("train", produce.train),
        ("export", produce.export),
        ("push", hub.push),
        ("pull", pull.pull),
        ("eval", inspect.evaluate),
        ("report", inspect.report),
        ("init", create.init),
        ("doctor", create.doctor),
    ]
    # Baselines and aggregates have negative ids, which look like options.
    naming = ("export", "eval", "pull")
    for name, function in commands:
        settings = {"ignore_unknown_options": True} if name in naming else {}
        app.command(name, context_settings=settings)(function)
    app.add_typer(sandbox.app, name="sandbox")


_register()


def main() -> None:
    """Run the command line: a person's mistake is one line and exit code 2, a failure 1."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except CqdHubError as error:
        if "--json" in sys.argv:
            record = {"error": error.what, "where": error.where, "remedy": error.remedy}
            print(json.dumps(record), file=sys.stderr)
        else:
            print(f"error: {_plain(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _plain(text: str) -> str:
    """One line without control characters: part of it may come from a model or a file."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


if __name__ == "__main__":
    main()
