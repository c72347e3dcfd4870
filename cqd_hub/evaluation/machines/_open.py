"""Which machines this host can have, and opening them."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from cqd_hub.errors import CqdHubError, RunError, UserError
from cqd_hub.evaluation.sandbox import Availability
from cqd_hub.evaluation.sandbox import _open as sandboxes

from ._bubblewrap import BubblewrapMachines
from ._docker import DEFAULT_IMAGE, DockerMachines
from ._image import LABEL, find_image, wanted
from ._interface import Machines
from ._spare import SpareMachines

Kind = Literal["auto", "bubblewrap", "docker"]
_INSIDE = Path("/.dockerenv")


async def open_machines(
    kind: Kind = "auto",
    *,
    image: str | Path | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Machines:
    """Open machines and start the first: `async with` is the caller's, `close` too.

    Args:
        kind: `auto` takes bubblewrap; docker only when asked for.
        image: Of bubblewrap: a name that `cqd-hub sandbox build --to` was given, or a folder. Of
            docker: the name it was imported under.
        note: Called with what these machines do not bound.

    Raises:
        UserError: This kind does not work here; the remedy says why not.
    """
    chosen = "docker" if kind == "docker" else "bubblewrap"
    machines: SpareMachines = _docker(image) if kind == "docker" else _bubblewrap(image)
    try:
        await (await machines.start()).close()
    except RunError as error:
        await machines.close()
        raise UserError(
            f"machines do not work here: {error.what}",
            where=f"{chosen} machines",
            remedy=_remedy(chosen),
        ) from None
    except BaseException:
        await machines.close()
        raise
    for line in machines.missing:
        note(f"{chosen} machines: {line}")
    return machines


def _bubblewrap(image: str | Path | None) -> BubblewrapMachines:
    if missing := sandboxes.missing("bubblewrap"):
        raise UserError(missing.why_not, where="bubblewrap machines", remedy=missing.remedy)
    return BubblewrapMachines(find_image(image))


def _docker(image: str | Path | None) -> DockerMachines:
    if shutil.which("docker") is None:
        raise UserError(
            "docker is not installed", where="docker machines", remedy=sandboxes.remedy("docker")
        )
    name = str(image or DEFAULT_IMAGE)
    packages, digest = _inspected(name) or (None, "")
    if packages != wanted():
        raise UserError(
            f"there is no image {name}"
            if packages is None
            else f"image {name} is of another version",
            where="docker machines",
            remedy=f"`cqd-hub sandbox build --docker {name}`",
        )
    return DockerMachines(name, digest)


def _inspected(image: str) -> tuple[str, str] | None:
    """What an image of the engine was made of, empty if it is not ours, and the start of its id;
    None without it.

    Raises:
        UserError: No engine answers.
    """
    label = f'{{{{index .Config.Labels "{LABEL}"}}}} {{{{.Id}}}}'
    command = ["docker", "image", "inspect", "--format", label, image]
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, check=False, text=True)
    except subprocess.TimeoutExpired:
        done = subprocess.CompletedProcess(command, 1, "", "")
    if done.returncode == 0:
        packages, _, name = done.stdout.strip("\n").partition(" ")
        return packages, name.removeprefix("sha256:")[:8]
    if "o such image" in done.stderr:
        return None
    raise UserError("no engine answers", where="docker machines", remedy=sandboxes.remedy("docker"))


def _remedy(kind: str) -> str:
    if kind == "docker":
        return "start the engine, and `cqd-hub sandbox build --docker NAME`"
    if _INSIDE.exists():
        return (
            "start this container with `--security-opt seccomp=unconfined --security-opt "
            "apparmor=unconfined --security-opt systempaths=unconfined`"
        )
    return sandboxes.remedy(kind)


def available_machines(image: str | Path | None = None) -> list[Availability]:
    """Try every kind, best first, by starting one."""

    async def attempt(kind: Kind, of: str | Path | None) -> Availability:
        try:
            await (await open_machines(kind, image=of)).close()
        except CqdHubError as error:
            return Availability(kind, False, error.what, error.remedy)
        return Availability(kind, True)

    async def all_of_them() -> list[Availability]:
        return [await attempt("bubblewrap", image), await attempt("docker", None)]

    with ThreadPoolExecutor(1) as thread:  # the caller's may have a running loop
        return thread.submit(asyncio.run, all_of_them()).result()
