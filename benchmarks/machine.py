"""What a command in an open machine and a fresh machine cost, against doing without.

    python benchmarks/machine.py [--rounds 30] [--image NAME] [--docker NAME]

Every round runs each contestant once, in turn, in this one process; printed are medians in
milliseconds and the median of each round's ratio: of a command to `bash -c`, of a fresh machine
(until its login shell answers, none started ahead) to `docker run` and a first `docker exec`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
import uuid
from collections.abc import Awaitable, Callable

from cqd_hub.errors import UserError
from cqd_hub.evaluation.machines import MachineLimits, MachineLost, Machines, open_machines

COMMAND = "ls / | wc -l; echo $((6 * 7))"
LIMITS = MachineLimits(machine_seconds=3600)


async def execute(*command: str) -> bytes:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    out, errors = await process.communicate()
    if process.returncode:
        raise SystemExit(f"{command[:2]} does not run: {errors.decode()}")
    return out


async def bare_container(image: str) -> None:
    """What one would do by hand: start a container, then run a first command in it."""
    name = f"cqd-hub-bench-{uuid.uuid4().hex}"
    run = ("docker", "run", "--rm", "--detach", "--network", "none", "--name", name, image)
    await execute(*run, "sleep", "600")
    await execute("docker", "exec", name, "bash", "--login", "-c", "true")
    await execute("docker", "kill", name)


async def fresh(machines: Machines) -> None:
    await machines.close()  # also of the one that was started ahead
    machine = await machines.start(LIMITS)
    await machine.shell("true")
    await machine.close()


async def main(rounds: int, image: str | None, docker: str | None) -> None:
    kinds: dict[str, Machines] = {}
    for kind, name in (("bubblewrap", image), ("docker", docker)):
        try:
            kinds[kind] = await open_machines(kind, image=name)  # type: ignore[arg-type]
        except UserError as error:
            print(f"{kind}: left out: {error}", file=sys.stderr)
    contestants: dict[str, Callable[[], Awaitable[object]]] = {
        "bash -c": lambda: execute("bash", "-c", COMMAND)
    }
    for kind, machines in kinds.items():
        machine = await machines.start(LIMITS)
        contestants[f"{kind} command"] = lambda m=machine: m.shell(COMMAND)
        contestants[f"{kind} script"] = lambda m=machine: m.run(COMMAND)
    if "docker" in kinds:
        contestants["docker run, exec"] = lambda: bare_container(docker or "cqd-hub-machine")
    else:
        print("no Docker: nothing to compare a fresh machine with", file=sys.stderr)
    for kind, name in (("bubblewrap", image), ("docker", docker)):
        if kind in kinds:  # others than those of the open machines, which closing would end
            new = await open_machines(kind, image=name)  # type: ignore[arg-type]
            contestants[f"{kind} fresh"] = lambda m=new: fresh(m)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 2):
        for name, run in contestants.items():
            began = time.perf_counter()
            await run()
            if turn >= 2:  # the first two fill the caches
                times[name].append(1000 * (time.perf_counter() - began))
    for machines in kinds.values():
        with contextlib.suppress(MachineLost):
            await machines.close()

    def ratio(name: str) -> str:
        to = "docker run, exec" if name.endswith("fresh") else "bash -c"
        if to not in times or name == to or name.startswith("docker run"):
            return ""
        pairs = zip(times[name], times[to], strict=True)
        return f"{statistics.median(a / b for a, b in pairs):8.2f} x {to}"

    for name, found in times.items():
        print(f"{name:22}{statistics.median(found):8.1f} ms {ratio(name)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--image")
    parser.add_argument("--docker")
    options = parser.parse_args()
    asyncio.run(main(options.rounds, options.image, options.docker))
