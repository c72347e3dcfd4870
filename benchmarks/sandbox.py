"""What an answer costs in each sandbox, against starting an interpreter for it.

    python benchmarks/sandbox.py [--rounds 40] [--image IMAGE]

Every round runs each contestant once, in turn, in this one process; printed are medians in
milliseconds and the median of each round's ratio to `bwrap ... python -I -c` and `python -I -c`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

from cqd_hub.errors import UserError
from cqd_hub.evaluation.sandbox import (
    Program,
    PythonCall,
    Sandbox,
    ShellScript,
    SqlQuery,
    open_sandbox,
)

PROGRAMS: dict[str, Program] = {
    "python": PythonCall("def f(x):\n    return sorted(x)", "f", (([3, 1, 2],), ([2, 1],))),
    "shell": ShellScript("sort names > sorted; wc -l < sorted", {"names": "b\na\n"}),
    "sql": SqlQuery(
        "create table t (a, b); insert into t values (1, 2), (3, 4);", "select sum(b) from t"
    ),
}
PREFIX = os.path.realpath(sys.base_prefix)
PYTHON = os.path.join(PREFIX, "bin", f"python3.{sys.version_info.minor}")
BARE = [PYTHON, "-I", "-c", "print(sorted([3, 1, 2]))"]
BWRAP = [
    *("bwrap", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin"),
    *("--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"),
    *(() if PREFIX == "/usr" else ("--ro-bind", PREFIX, PREFIX)),
    *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--unshare-all"),
    *("--die-with-parent", "--new-session", *BARE),
]


async def command(arguments: list[str]) -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*arguments, stdout=pipe, stderr=pipe)
    out, errors = await process.communicate()
    if out != b"[1, 2, 3]\n":
        raise SystemExit(f"{arguments[0]} does not run: {errors.decode()}")


async def main(rounds: int, image: str | None) -> None:
    sandboxes: list[Sandbox] = []
    for kind in ("bubblewrap", "landlock", "docker"):
        try:
            sandboxes.append(await open_sandbox(kind, workers=1, image=image))  # type: ignore[arg-type]
        except UserError as error:
            print(f"{kind}: left out: {error}", file=sys.stderr)
    contestants: dict[str, Callable[[], Awaitable[object]]] = {
        "bwrap python -I -c": lambda: command(BWRAP),
        "python -I -c": lambda: command(BARE),
    }
    for sandbox in sandboxes:
        for name, program in PROGRAMS.items():
            contestants[f"{sandbox.kind} {name}"] = lambda s=sandbox, p=program: s.run(p)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 2):
        for name, run in contestants.items():
            began = time.perf_counter()
            await run()
            if turn >= 2:  # the first two warm the workers
                times[name].append(1000 * (time.perf_counter() - began))
    for sandbox in sandboxes:
        await sandbox.close()

    def ratio(to: str, name: str) -> float:
        return statistics.median(a / b for a, b in zip(times[to], times[name], strict=True))

    print(f"{'':22}{'ms':>8}{'bwrap/it':>10}{'python/it':>10}")
    for name, found in times.items():
        first, second = ratio("bwrap python -I -c", name), ratio("python -I -c", name)
        print(f"{name:22}{statistics.median(found):8.1f}{first:10.1f}{second:10.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--image")
    options = parser.parse_args()
    asyncio.run(main(options.rounds, options.image))
