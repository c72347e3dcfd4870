"""Commands for the root file systems that agents' machines start from: sandbox build, list."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cqd_hub.cli.options import JsonOption

app = typer.Typer(
    no_args_is_help=True, help="The root file systems that agents' machines start from."
)


@app.command()
def build(
    suite: Annotated[
        str, typer.Option("--suite", metavar="NAME", help="Debian release.")
    ] = "bookworm",
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="NAME|FOLDER", help="A name in the cache, or a folder [default: debian]"
        ),
    ] = None,
    tar: Annotated[
        Path | None,
        typer.Option("--tar", metavar="FILE", help="A ready root file system instead of packages."),
    ] = None,
    docker: Annotated[
        str | None,
        typer.Option("--docker", metavar="NAME", help="Also make it an image of Docker's engine."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is there; no run may be using it.")
    ] = False,
) -> None:
    """Build a root file system from Debian packages, as root or as an ordinary user.

    It takes mmdebstrap (or, as root, debootstrap), Debian's archive, a minute or two and 0.6 GB.
    With --docker alone, one that is there already is not built again.

    Examples:

        cqd-hub sandbox build

        cqd-hub sandbox build --docker cqd-hub-machine

        cqd-hub sandbox build --tar rootfs.tar.zst --to mine
    """
    from cqd_hub.errors import UserError
    from cqd_hub.evaluation.machines import build_image, find_image, to_docker

    def note(line: str) -> None:
        print(f"  {line}", file=sys.stderr)

    image = None
    if docker is not None and not force and tar is None:
        with contextlib.suppress(UserError):
            image = find_image(to)
    image = image or build_image(to, suite=suite, tar=tar, force=force, note=note)
    if docker is not None:
        note(f"importing it into Docker as {docker}")
        to_docker(image, docker)
    print(image.folder)


@app.command("list")
def list_images(as_json: JsonOption = False) -> None:
    """List the root file systems in the cache, and whether they can be used.

    Examples:

        cqd-hub sandbox list
    """
    from cqd_hub.errors import UserError
    from cqd_hub.evaluation.machines import find_image, images

    for image in images():
        try:
            find_image(image.folder)
            state = "ok"
        except UserError as error:
            state = f"{error.what} ({error.remedy})"
        if as_json:
            record = {"name": image.folder.name, "state": state, **asdict(image)}
            print(json.dumps(record | {"folder": str(image.folder)}))
        else:
            print(f"{image.folder.name}  {image.made}  {image.folder}  {state}")
