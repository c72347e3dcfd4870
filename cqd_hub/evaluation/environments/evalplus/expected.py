"""What the canonical solutions give: computed once in the sandbox, then kept as JSON."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.sandbox import Sandbox, Status
from cqd_hub.files import cache_folder, write_atomic

from .data import Task, TestSet
from .faults import fault_of
from .judge import judge_of
from .runner import Answer, Timing, run_tests

FORMAT = 1
LARGEST = 64 << 20  # bytes of one task's values
SECONDS = 60.0  # of one input
SLOW = 0.01  # below this the time of an input is not worth keeping
LEAST_OUTPUT = 1 << 16
AT_ONCE = 4
NOTE_FROM = 20


@dataclass(frozen=True)
class Expected:
    """Of one set of a task's tests.

    Args:
        results: Per input ``{"ok": value}``, or ``{"error": text}`` where the canonical solution
            gives nothing that could be compared.
        seconds: CPU time it took, by input number (as text), where that was not short.
        size: Characters of the results as JSON.
    """

    results: Sequence[Mapping[str, Any]]
    seconds: Mapping[str, float]
    size: int = 0

    @property
    def output_bytes(self) -> int:
        """What an answer may reply: enough for the values written twice as long."""
        return max(LEAST_OUTPUT, 2 * self.size)

    @property
    def fault(self) -> str:
        """Why some of the inputs cannot be judged; else empty."""
        for number, result in enumerate(self.results):
            if "error" in result:
                return f"the canonical solution fails on input {number}: {result['error']}"
        return ""


class Expectations:
    """All that were computed, on disk under the cache folder; read when asked for."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or cache_folder() / "evalplus"

    def of(self, task: Task, tests: TestSet) -> Expected:
        """What `complete` has stored.

        Raises:
            RunError: Somebody has removed or changed it since.
        """
        path = self._path(task, tests)
        try:
            text = path.read_text("utf-8")
            stored = json.loads(text)
            return Expected(stored["results"], stored["seconds"], len(text))
        except (OSError, ValueError, LookupError):
            raise RunError(
                "the stored outputs of a canonical solution are gone or damaged",
                where=str(path),
                remedy="remove the file if it is there, and run the same command again",
            ) from None

    async def complete(
        self,
        wanted: Sequence[tuple[Task, TestSet]],
        sandbox: Sandbox,
        note: Callable[[str], None],
    ) -> None:
        """Compute what is not stored yet. What is done stays when this is interrupted.

        Raises:
            UserError: A canonical solution, not known as faulty, has no outputs to compare with.
            SandboxFailure: The machine failed.
        """
        missing = [place for place in wanted if not self._path(*place).is_file()]
        if len(missing) >= NOTE_FROM:
            note(f"running {len(missing)} canonical solutions once, for their expected outputs")
        free = asyncio.Semaphore(AT_ONCE)

        async def compute(task: Task, tests: TestSet) -> None:
            async with free:
                expected = await reference(sandbox, task, tests)
            if expected.fault and not fault_of(task.id, tests):
                raise UserError(
                    f"its {tests} tests cannot be judged: {expected.fault}",
                    where=task.id,
                    remedy="correct the task, or take it out of the file",
                )
            content = {"results": expected.results, "seconds": expected.seconds}
            write_atomic(self._path(task, tests), json.dumps(content))

        try:
            async with asyncio.TaskGroup() as group:
                for task, tests in missing:
                    group.create_task(compute(task, tests))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    def _path(self, task: Task, tests: TestSet) -> Path:
        content = [FORMAT, task.canonical, task.entry, judge_of(task).view, task.inputs[tests]]
        name = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.json"


async def reference(sandbox: Sandbox, task: Task, tests: TestSet) -> Expected:
    """Run a canonical solution."""
    inputs = task.inputs[tests]
    if not inputs:
        return Expected([], {})
    outcome = await run_tests(
        sandbox,
        Answer(task.canonical, task.entry),
        inputs,
        view=judge_of(task).view,
        timing=Timing(SECONDS, {}),
        output_bytes=LARGEST,
        timed=True,
    )
    if outcome.status is not Status.FINISHED:
        why = f"{outcome.status}: {outcome.detail}" if outcome.detail else str(outcome.status)
        return Expected([{"error": why}] * len(inputs), {})
    results, seconds = [], {}
    for number, result in enumerate(outcome.value):
        if "ok" in result:
            value, took = result["ok"]
            result = {"ok": value}
            if took >= SLOW:
                seconds[str(number)] = round(took, 3)
        results.append(result)
    return Expected(results, seconds)
