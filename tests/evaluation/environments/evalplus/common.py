"""A few tasks of our own in EvalPlus' format, and an environment over them on a real sandbox."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cqd_hub.evaluation.environments.evalplus import EvalPlus
from cqd_hub.evaluation.episodes import Episode, Message, Observation, Resources, Turn, Verdict
from cqd_hub.evaluation.sandbox import Sandbox
from cqd_hub.recipe.schema import Evaluation


def record(
    task: str, entry: str, solution: str, base: list[Any], plus: list[Any], **more: Any
) -> dict[str, Any]:
    arguments = ", ".join(map(repr, base[0]))
    assertion = f"assert {entry}({arguments}) == {more['first']}"
    return {
        "task_id": task,
        "prompt": f'"""\nOne of our own: {entry}.\n{assertion}\n"""\n',
        "entry_point": entry,
        "canonical_solution": solution,
        "base_input": base,
        "plus_input": plus,
        "atol": more.get("atol", 0),
    }


DOUBLE = record(
    "Mbpp/9001",
    "double",
    "def double(x):\n    return 2 * x\n",
    [[1], [0], [-4]],
    [[10**20], ["ab"], [[1, None]]],
    first=2,
)
# One per kind of oracle; names and numbers are those that the kinds belong to.
TASKS = [
    DOUBLE,
    record(
        "Mbpp/2",
        "similar_elements",
        "def similar_elements(a, b):\n    return tuple(x for x in a if x in b)\n",
        [[[7, 8, 9], [9, 7]]],
        [[[], []], [["x"], ["x", "y"]]],
        first="(7, 9)",
    ),
    record(
        "Mbpp/737",
        "check_str",
        "import re\ndef check_str(s):\n    return re.match('[aeiou]', s)\n",
        [["owl"], ["cat"]],
        [[""]],
        first=True,
    ),
    record(
        "Mbpp/164",
        "are_equivalent",
        "def are_equivalent(a, b):\n    return a == b\n",
        [[3, 3]],
        [[1, 2]],
        first=True,
    ),
    record(
        "Mbpp/295",
        "sum_div",
        "def sum_div(n):\n    return sum(d for d in range(1, n) if n % d == 0)\n",
        [[6]],
        [[10]],
        first=6,
    ),
    record(
        "Mbpp/581",
        "surface_Area",
        "def surface_Area(b, s):\n    return 2 * b * s + b * b\n",
        [[3, 2]],
        [[6, 4]],
        first=21,
    ),
    record(
        "Mbpp/558",
        "digit_distance_nums",
        "def digit_distance_nums(a, b):\n"
        "    return sum(abs(int(x) - int(y)) for x, y in zip(str(a), str(b)))\n",
        [[12, 34]],
        [[5, 10]],
        first=4,
    ),
    record(
        "Mbpp/9002",
        "third",
        "def third(x):\n    return x / 3\n",
        [[1]],
        [[2], [10**9]],
        first="1 / 3",
    ),
    record(
        "Mbpp/9003",
        "mean",
        "def mean(xs):\n    return sum(xs) / len(xs)\n",
        [[[1, 2]]],
        [[[5]]],
        first=1.5,
        atol=0.01,
    ),
    {
        "task_id": "HumanEval/32",
        "prompt": "import math\n\n\ndef find_zero(xs: list):\n"
        '    """ Find a zero of the polynomial xs[0] + xs[1] * x + ...\n'
        "    >>> round(find_zero([1, 2]), 2)\n    -0.5\n"
        '    """\n',
        "entry_point": "find_zero",
        "canonical_solution": "    low, high = -1000.0, 1000.0\n"
        "    value = lambda x: sum(c * math.pow(x, i) for i, c in enumerate(xs))\n"
        "    for _ in range(100):\n"
        "        middle = (low + high) / 2\n"
        "        if value(low) * value(middle) <= 0:\n"
        "            high = middle\n"
        "        else:\n"
        "            low = middle\n"
        "    return low\n",
        "base_input": [[[1, 2]]],
        "plus_input": [[[-6, 11, -6, 1]]],
        "atol": 1e-4,
    },
]
BY_ENTRY = {task["entry_point"]: task for task in TASKS}


def write(path: Path, tasks: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return path


def canonical(task: Mapping[str, Any]) -> str:
    return f"{task['prompt']}{task['canonical_solution']}"


class Ground:
    """An opened environment behind synchronous calls."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sandbox: Sandbox, data: Path | str, **options: Any
    ) -> None:
        self.loop = loop
        self.notes: list[str] = []
        self.environment = EvalPlus(EvalPlus.Options(data=str(data), **options), Path())

        async def lend() -> Sandbox:
            return sandbox

        resources = Resources(Evaluation(), lend, self.notes.append)
        loop.run_until_complete(self.environment.open(resources))
        self.samples = {
            sample.document["entry_point"]: sample
            for samples in self.environment.samples().values()
            for sample in samples
        }

    def begin(self, entry: str) -> Episode:
        return self.loop.run_until_complete(self.environment.begin(self.samples[entry]))

    def step(self, episode: Episode, text: str) -> Turn:
        return self.loop.run_until_complete(episode.step(Message("assistant", text)))

    def verdict(self, entry: str, text: str) -> Verdict:
        turn = self.step(self.begin(entry), text)
        assert isinstance(turn, Verdict)
        return turn

    def seen(self, episode: Episode, text: str) -> str:
        turn = self.step(episode, text)
        assert isinstance(turn, Observation)
        return turn.messages[0].content
