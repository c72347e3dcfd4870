"""Real machines of every kind that can be had here, each behind a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import cqd_hub
from cqd_hub.errors import UserError
from cqd_hub.evaluation.machines import (
    Image,
    MachineLimits,
    MachineLost,
    Printed,
    Ran,
    find_image,
)

NAME = "CQD_HUB_TEST_MACHINE"
DOCKER = "CQD_HUB_TEST_MACHINE_DOCKER"
SECRET = "hf_" + "s3cret" * 5
LIMITS = MachineLimits(
    command_seconds=5,
    cpu_seconds=4,
    machine_seconds=120,
    memory_mb=160,
    processes=40,
    disk_mb=32,
    files=2000,
    output_bytes=10_000,
)
SERVER = Path(__file__).parent / "server.py"
ORDINARY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
RANGES = 'mount --bind "$0" /etc/subuid && mount --bind "$0" /etc/subgid && exec "$@"'


class Box:
    """Machines, and the one that is used now."""

    def __init__(self, kind: str, process: subprocess.Popen[str]) -> None:
        self.kind, self._process = kind, process
        hello = self._read()
        if why := hello.get("why"):
            process.communicate()
            pytest.skip(f"{kind}: {why}")
        self.guarantees, self.notes = hello["guarantees"], hello["notes"]
        self.machine: int | None = None

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline() or '{"why": "the server ended"}')

    def _ask(self, verb: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"verb": verb, **arguments}) + "\n")
        self._process.stdin.flush()
        reply = self._read()
        if isinstance(reply, dict) and "lost" in reply:
            raise MachineLost(reply["lost"])
        return reply

    def start(self, limits: MachineLimits = LIMITS) -> int:
        self.machine = self._ask("start", **asdict(limits))
        assert self.machine is not None
        return self.machine

    def close(self) -> None:
        if self.machine is not None:
            self._ask("close", machine=self.machine)
        self.machine = None

    def shell(self, command: str, seconds: float | None = None) -> Printed:
        reply = self._ask("shell", machine=self.machine, command=command, seconds=seconds)
        return Printed(*reply)

    def run(self, script: str, language: str = "bash", parameters: Sequence[str] = ()) -> Ran:
        return Ran(
            *self._ask(
                "run",
                machine=self.machine,
                script=script,
                language=language,
                parameters=list(parameters),
            )
        )

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def image_for_tests() -> Image:
    """The one named in the environment, else the one that was built for use."""
    try:
        return find_image(os.environ.get(NAME))
    except UserError as error:
        pytest.skip(f"{error} (or name one in {NAME})")


def serve(command: Sequence[str], *, packages: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env={**os.environ, "SECRET_TOKEN": SECRET, "PYTHONPATH": str(packages)},
    )


def _for_others(folder: Path) -> Path:
    """Copy what machines need to where another user reaches it."""
    source, target = Path(cqd_hub.__file__).parent, folder / "code" / "cqd_hub"
    for name in ("sandbox", "machines"):
        shutil.copytree(
            source / "evaluation" / name,
            target / "evaluation" / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for name in ("errors.py", "files.py"):
        shutil.copy(source / name, target / name)
    for place in (target, target / "evaluation"):
        (place / "__init__.py").touch()
    shutil.copy(SERVER, folder / "server.py")
    return folder / "code"


def _python_of_others() -> str:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    version = python and subprocess.run(
        [python, "-c", "import sys; print(sys.version_info >= (3, 11))"],
        capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    if python is None or version != "True":
        pytest.skip("no python3 >= 3.11 that another user can reach")
    return python


def _as_ordinary(kind: str, image: Image, folder: Path) -> subprocess.Popen[str]:
    """Started by another user: with a range of ids, or with one."""
    python, packages = _python_of_others(), _for_others(folder)
    command = [*ORDINARY, python, str(folder / "server.py"), "bubblewrap"]
    if kind == "one-id":
        tar = folder / "root.tar"
        with tar.open("wb") as file:
            from cqd_hub.evaluation.machines._build import pack

            pack(image, file)
        home = folder / "home"
        home.mkdir()
        os.chown(home, 65534, 65534)
        return serve([*command, str(home / "machine"), str(tar)], packages=packages)
    if not shutil.which("newuidmap"):
        pytest.skip("newuidmap is not installed")
    reach = subprocess.run([*ORDINARY, "test", "-r", str(image.root / "etc")])
    if reach.returncode:
        pytest.skip(f"{image.root}: another user cannot reach it (name another in {NAME})")
    if not Path("/etc/subuid").exists() or not Path("/etc/subgid").exists():
        pytest.skip("no /etc/subuid and /etc/subgid")
    ranges = folder / "ranges"
    ranges.write_text(f"65534:{image.ids.uid}:65536\n")
    inside = ["unshare", "--mount", "sh", "-c", RANGES, str(ranges), *command, str(image.folder)]
    return serve(inside, packages=packages)


KINDS = [
    "bubblewrap",
    pytest.param("ordinary", marks=pytest.mark.slow),
    pytest.param("one-id", marks=pytest.mark.slow),
    pytest.param("docker", marks=pytest.mark.slow),
]


@pytest.fixture(scope="session", params=KINDS)
def machines(request: pytest.FixtureRequest) -> Iterator[Box]:
    kind: str = request.param
    folder = Path(tempfile.mkdtemp(prefix="cqd-hub-user-", dir="/tmp"))
    folder.chmod(0o755)
    own = [sys.executable, str(SERVER)]
    packages = Path(cqd_hub.__file__).parents[1]
    try:
        if kind == "docker":
            if DOCKER not in os.environ:
                pytest.skip(f"docker: no image (name one in {DOCKER})")
            process = serve([*own, "docker", os.environ[DOCKER]], packages=packages)
        elif kind == "bubblewrap":
            folder_of_image = str(image_for_tests().folder)
            process = serve([*own, "bubblewrap", folder_of_image], packages=packages)
        else:
            process = _as_ordinary(kind, image_for_tests(), folder)
        box = Box(kind, process)
        yield box
        box.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def box(machines: Box) -> Iterator[Box]:
    """With a fresh machine."""
    machines.start()
    yield machines
    machines.close()
