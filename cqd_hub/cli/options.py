"""Annotated option types that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN_DIR", help="A run directory that `evolve` made.")
]
OverrideOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout, one object per line.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only the result on stdout.")]
