"""What judging a coding answer costs, against starting an interpreter for it.

    python benchmarks/coding.py [--rounds 40] [--plus 100] [--image IMAGE]

The same answer, alternately: found in the model's text, run and judged by the `evalplus`
environment (base tests; base and plus tests), and run with its base tests as assertions by a bare
`python -I` in a bare `bwrap`. Printed are medians in milliseconds and the median of each round's
ratio to the latter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from sandbox import BWRAP, PYTHON

from cqd_hub.errors import UserError
from cqd_hub.evaluation.environments.evalplus import EvalPlus
from cqd_hub.evaluation.episodes import Message, Resources
from cqd_hub.evaluation.sandbox import Sandbox, open_sandbox
from cqd_hub.recipe.schema import Evaluation

CODE = "import math\n\ndef middle(xs):\n    xs = sorted(xs)\n    return xs[len(xs) // 2]\n"
INPUTS = [[[3, 1, 2]], [[5]], [[2, 9, 4, 7]]]
ASSERTIONS = "assert middle([3, 1, 2]) == 2\nassert middle([5]) == 5\n"
ASSERTIONS += "assert middle([2, 9, 4, 7]) == 7\nprint('passed')\n"
ANSWER = f"Here is the function:\n\n```python\n{CODE}```\n\nIt sorts and takes the middle."
BARE = [*BWRAP[: BWRAP.index(PYTHON)], PYTHON, "-I", "-c", CODE + ASSERTIONS]


def task(plus: int) -> dict[str, object]:
    return {
        "task_id": "Mbpp/9000",
        "prompt": '"""\nFind the middle of a list.\nassert middle([3, 1, 2]) == 2\n"""\n',
        "entry_point": "middle",
        "canonical_solution": CODE,
        "base_input": INPUTS,
        "plus_input": [[list(range(number % 9, 30))] for number in range(plus)],
        "atol": 0,
    }


async def bare() -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*BARE, stdout=pipe, stderr=pipe)
    out, errors = await process.communicate()
    if out != b"passed\n":
        raise SystemExit(f"the bare answer does not run: {errors.decode()}")


async def opened(sandbox: Sandbox, path: Path, tests: str) -> Callable[[], Awaitable[None]]:
    environment = EvalPlus(EvalPlus.Options(data=str(path), tests=tests), path.parent)  # type: ignore[arg-type]

    async def lend() -> Sandbox:
        return sandbox

    await environment.open(Resources(Evaluation(), lend, print))
    (sample,) = environment.samples()["test"]

    async def judge() -> None:
        episode = await environment.begin(sample)
        verdict = await episode.step(Message("assistant", ANSWER))
        if verdict[0] != 1.0:
            raise SystemExit(f"the answer does not pass: {verdict}")

    return judge


async def main(rounds: int, plus: int, image: str | None, folder: Path) -> None:
    os.environ["CQD_HUB_CACHE"] = str(folder / "cache")
    path = folder / "task.jsonl"
    path.write_text(json.dumps(task(plus)))
    contestants: dict[str, Callable[[], Awaitable[None]]] = {"bwrap python -I -c": bare}
    sandboxes: list[Sandbox] = []
    for kind in ("bubblewrap", "landlock", "docker"):
        try:
            sandboxes.append(await open_sandbox(kind, workers=1, image=image))  # type: ignore[arg-type]
        except UserError as error:
            print(f"{kind}: left out: {error}", file=sys.stderr)
            continue
        contestants[f"{kind} base"] = await opened(sandboxes[-1], path, "base")
        contestants[f"{kind} base, {plus} plus"] = await opened(sandboxes[-1], path, "plus")
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 2):
        for name, run in contestants.items():
            began = time.perf_counter()
            await run()
            if turn >= 2:  # the first two warm the workers
                times[name].append(1000 * (time.perf_counter() - began))
    for sandbox in sandboxes:
        await sandbox.close()
    first = times["bwrap python -I -c"]
    print(f"{'':28}{'ms':>8}{'it/bwrap':>10}")
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, first, strict=True))
        print(f"{name:28}{statistics.median(found):8.1f}{ratio:10.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--plus", type=int, default=100)
    parser.add_argument("--image")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(main(options.rounds, options.plus, options.image, Path(scratch)))
