"""Which sandboxes this machine can run, and opening one."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple

from cqd_hub.errors import UserError

from ._programs import printable
from ._sandboxes import DockerSandbox, Sandbox, WarmSandbox
from ._start import Start, bubblewrap_start, landlock_start, landlock_version
from ._worker import WorkerLost

Kind = Literal["auto", "bubblewrap", "landlock", "docker"]
DEFAULT_IMAGE = "python:3.12-slim"
_STARTS: dict[str, Callable[..., AbstractContextManager[Start]]] = {
    "bubblewrap": bubblewrap_start,
    "landlock": landlock_start,
}
_REMEDIES = {
    "bubblewrap": "install it: `apt install bubblewrap`, `dnf install bubblewrap` or "
    "`pacman -S bubblewrap`",
    "userns": "allow unprivileged user namespaces: `sysctl kernel.unprivileged_userns_clone=1` "
    "or, on Ubuntu, `sysctl kernel.apparmor_restrict_unprivileged_userns=0`; in "
    "Docker: `--security-opt seccomp=unconfined --security-opt systempaths=unconfined`",
    "landlock": "use Linux 5.13 or later with Landlock enabled (`lsm=landlock,...` at boot)",
    "docker": "install Docker and start it: https://docs.docker.com/engine/install/",
    "linux": "use `docker` here",
}


class Availability(NamedTuple):
    """Whether one kind of sandbox works here, and if not, why and what to do."""

    kind: str
    ok: bool
    why_not: str = ""
    remedy: str = ""


def available() -> list[Availability]:
    """Try every kind, best first, by running a trivial answer (docker: by asking the engine)."""

    async def warm() -> list[Availability]:
        return [await _try(kind) for kind in _STARTS]

    with ThreadPoolExecutor(1) as thread:  # the caller's may have a running loop
        return [*thread.submit(asyncio.run, warm()).result(), _try_docker()]


def missing(kind: str) -> Availability | None:
    """What is known to be missing without starting anything."""
    if not sys.platform.startswith("linux"):
        return Availability(kind, False, "it needs Linux", _REMEDIES["linux"])
    if os.uname().machine not in ("x86_64", "aarch64"):
        why = f"no system-call filter for {os.uname().machine}"
        return Availability(kind, False, why, _REMEDIES["linux"])
    if kind == "bubblewrap" and shutil.which("bwrap") is None:
        return Availability(kind, False, "bwrap is not installed", _REMEDIES["bubblewrap"])
    if kind == "landlock" and landlock_version() == 0:
        return Availability(kind, False, "the kernel has no Landlock", _REMEDIES["landlock"])
    return None


async def _try(kind: str) -> Availability:
    opened = await _open_warm(kind, 1)
    if isinstance(opened, Availability):
        return opened
    await opened.close()
    return Availability(kind, True)


async def _open_warm(kind: str, workers: int) -> Sandbox | Availability:
    """Open one, or say why it does not open."""
    if found := missing(kind):
        return found
    sandbox = WarmSandbox(kind, _STARTS[kind], workers)
    try:
        await sandbox.open()
    except WorkerLost as lost:
        return Availability(kind, False, str(lost), remedy(kind))
    return sandbox


def remedy(kind: str) -> str:
    return _REMEDIES["userns" if kind == "bubblewrap" else kind]


def _try_docker() -> Availability:
    if shutil.which("docker") is None:
        return Availability("docker", False, "docker is not installed", _REMEDIES["docker"])
    try:
        done = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            timeout=15,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Availability("docker", False, printable(str(error)), _REMEDIES["docker"])
    if done.returncode != 0:
        return Availability("docker", False, "no engine answers", _REMEDIES["docker"])
    return Availability("docker", True)


async def open_sandbox(
    kind: Kind = "auto", *, workers: int = 2, image: str | None = None
) -> Sandbox:
    """Open a sandbox: `async with await open_sandbox() as sandbox`.

    Args:
        kind: `auto` takes bubblewrap, else landlock; docker only when asked for.
        workers: Boxes working at the same time.
        image: For docker: an image, already pulled, with python3 (3.9 or later) and bash.

    Raises:
        UserError: that kind (or, for `auto`, every one) does not work here.
    """
    if kind == "docker":
        if shutil.which("docker") is None:
            raise UserError("docker is not installed", remedy=_REMEDIES["docker"])
        docker = DockerSandbox(image or DEFAULT_IMAGE, workers)
        await docker.open()
        return docker
    reasons: list[Availability] = []
    for name in _STARTS if kind == "auto" else (kind,):
        opened = await _open_warm(name, workers)
        if isinstance(opened, Sandbox):
            return opened
        reasons.append(opened)
    why = "; ".join(f"{reason.kind}: {reason.why_not}" for reason in reasons)
    raise UserError(f"no sandbox to run model-written text in: {why}", remedy=reasons[0].remedy)
