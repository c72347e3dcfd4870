"""How a box's first program is started: commands, the first frame, and a user for root."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import platform
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .box.folder import empty

BOX = Path(__file__).parent / "box"
MODULES = (
    "values", "kernel", "seccomp", "landlock", "answer", "tree", "folder", "frames", "zygote",
)  # fmt: skip
# Reads the first frame, defines the modules it carries, and runs the last one.
BOOT = """
import json, os, struct, sys, types
sys.path = [path for path in sys.path if path]
def take(length):
    data = b""
    while len(data) < length:
        piece = os.read(0, length - len(data))
        if not piece:
            sys.exit(1)
        data += piece
    return data
frame = json.loads(take(struct.unpack(">I", take(4))[0]))
package = sys.modules["box"] = types.ModuleType("box")
package.__path__ = []
for name, source in frame["modules"]:
    module = sys.modules["box." + name] = types.ModuleType("box." + name)
    module.__package__ = "box"
    setattr(package, name, module)
    exec(compile(source, "box/" + name + ".py", "exec"), module.__dict__)
module.main(frame["config"])
"""
FLAGS = ("-S", "-s", "-B", "-c", BOOT)


@dataclass(frozen=True)
class Service:
    """A trusted program that stays in a box and is asked again and again (`box/service.py`).

    Args:
        modules: Names and sources of what it is made of, standard library only, each importing
            only those before it, as `from .name import`; the last one's
            `serve(read_frame, write_frame)` runs.
        memory_mb: MiB of the process.
    """

    modules: tuple[tuple[str, str], ...]
    memory_mb: int


@dataclass(frozen=True)
class Start:
    """A command, its environment, and the frame to write to it first."""

    command: list[str]
    environment: dict[str, str]
    first: bytes


def frame(content: Any) -> bytes:
    data = json.dumps(content).encode()
    return struct.pack(">I", len(data)) + data


def first_frame(
    config: dict[str, Any], names: Sequence[str] = MODULES, service: Service | None = None
) -> bytes:
    """What `BOOT` reads: the modules *names*, or a *service*'s too, the last serving *config*."""
    modules = [(name, (BOX / f"{name}.py").read_text(encoding="utf-8")) for name in names]
    if service is not None:
        last = ("service", (BOX / "service.py").read_text(encoding="utf-8"))
        modules += [*service.modules, last]
        config = {**config, "serve": service.modules[-1][0], "memory_mb": service.memory_mb}
    return frame({"modules": modules, "config": config})


def interpreter() -> str:
    """The real Python below any virtual environment."""
    found = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    if found.startswith(os.path.realpath(sys.base_prefix)):
        return found
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return os.path.join(os.path.realpath(sys.base_prefix), "bin", name)


def hidden(prefix: str) -> list[str]:
    """Folders of installed packages under /usr and *prefix*, which a box must not show.

    No answer needs them, and this package may be installed there with the tests it ships.
    """
    library = os.path.dirname(os.path.realpath(os.__file__))
    bases = {"/usr", "/usr/local", prefix}
    found = {
        os.path.realpath(path)
        for base in bases
        for inner in ("lib", "lib64", "local/lib")
        for kind in ("site-packages", "dist-packages")
        for path in Path(base, inner).glob(f"python*/{kind}")
    }
    found.add(str(Path(__file__).resolve().parents[3]))  # where this package was imported from
    shown = tuple(f"{base}/" for base in bases)
    found = {
        path
        for path in found
        if path.startswith(shown) and not f"{library}/".startswith(f"{path}/")
    }
    return sorted(
        path
        for path in found
        if os.path.isdir(path) and not any(path.startswith(f"{other}/") for other in found)
    )


@contextmanager
def _folder() -> Iterator[str]:
    """A temporary folder, removed whatever an answer left in it."""
    path = os.path.realpath(tempfile.mkdtemp(prefix="cqd-hub-box-"))
    try:
        yield path
    finally:
        # Nothing in it is worth ending a run for.
        with contextlib.suppress(OSError):
            empty(path)
            os.rmdir(path)


@contextmanager
def bubblewrap_start(service: Service | None = None) -> Iterator[Start]:
    """A worker inside bubblewrap."""
    prefix = os.path.realpath(sys.base_prefix)
    with _folder() as folder:
        os.chmod(folder, 0o755)
        plan = {
            "bwrap": shutil.which("bwrap"),
            "prefix": prefix,
            "hidden": hidden(prefix),
            "uid": spare_uid() if os.geteuid() == 0 else None,
            "folder": folder,
            "command": [interpreter(), *FLAGS],
        }
        launcher = [interpreter(), "-I", "-S", "-B", str(BOX / "launch.py"), json.dumps(plan)]
        yield Start(
            launcher, {}, first_frame({"kind": "bubblewrap", "once": False}, service=service)
        )


@contextmanager
def landlock_start(service: Service | None = None) -> Iterator[Start]:
    """A worker without namespaces, each answer bound by Landlock."""
    prefix = os.path.realpath(sys.base_prefix)
    with _folder() as folder:
        root = os.geteuid() == 0
        private = os.path.join(folder, "box")
        os.mkdir(private, 0o700)
        if root:
            os.chmod(folder, 0o711)
        config = {
            "kind": "landlock",
            "once": False,
            "folder": private,
            "uid": spare_uid() if root else None,
            "library": [prefix],
            "hidden": hidden(prefix),
        }
        environment = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}
        yield Start([interpreter(), *FLAGS], environment, first_frame(config, service=service))


_counter = itertools.count()


def spare_uid() -> int:
    """A user id that owns nothing, another for every worker of this machine."""
    number = os.getpid() * 64 + next(_counter) % 64
    wanted = 1_700_000_000 + number
    ranges = [
        (int(first), int(length))
        for first, _, length in (
            line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()
        )
    ]
    if any(first <= wanted < first + length for first, length in ranges):
        return wanted
    first, length = max(ranges, key=lambda item: item[1])
    # A container's 65,536 ids: the upper half, short of the last ids that systems use.
    return first + length // 2 + number % max(1, length // 2 - 16)


def landlock_version() -> int:
    """The kernel's Landlock ABI; 0 without Landlock."""
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"):
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, libc.syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))
