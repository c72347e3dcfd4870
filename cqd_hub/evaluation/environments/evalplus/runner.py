"""Answers as programs for the sandbox, and what comes of them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cqd_hub.evaluation.sandbox import JSON, Limits, Outcome, PythonCall, Sandbox, Status

MEMORY_MB = 1024
MOST_INPUT = 1 << 20  # characters of inputs in one call of the sandbox
FACTOR = 4.0  # of the reference's time
EXTRA_SECONDS = 10.0  # what all inputs together may take beyond that


@dataclass(frozen=True)
class Answer:
    """A program for a task.

    Args:
        text: What the model wrote, or the program itself where *rule* is empty.
        entry: The function that is called.
        rule: Of `sanitise.RULES`: how the program is found in the text.
        head: Put before a text in which no function is found (the beginning it was to continue).
    """

    text: str
    entry: str
    rule: str = ""
    head: str = ""


@dataclass(frozen=True)
class Timing:
    """CPU time that inputs may take.

    Args:
        least: Seconds each may take, and loading.
        reference: Seconds that the canonical solution took, by input number; only the slow ones.
    """

    least: float
    reference: Mapping[str, float]

    @property
    def more(self) -> dict[str, float]:
        """Inputs that may take longer than *least*."""
        slow = {number: FACTOR * seconds for number, seconds in self.reference.items()}
        return {number: seconds for number, seconds in slow.items() if seconds > self.least}

    @property
    def limits(self) -> Limits:
        """Of one call of the sandbox; a loop in C is ended only by these."""
        total = self.least + EXTRA_SECONDS + FACTOR * sum(self.reference.values())
        return Limits(cpu_seconds=total, wall_seconds=2 * total, memory_mb=MEMORY_MB)


@functools.cache
def _code() -> str:
    """What is sent before each answer; `from __future__` lines may stand only at the beginning."""
    folder = Path(__file__).parent
    texts = [(folder / name).read_text("utf-8") for name in ("sanitise.py", "inside.py")]
    line = "from __future__ import annotations\n"
    return line + "".join(text.replace(line, "") for text in texts)


def _call(
    answer: Answer, entry: str, inputs: Sequence[tuple[JSON, ...]], **options: Any
) -> PythonCall:
    text, head = json.dumps(answer.text), json.dumps(answer.head)
    code = f"""{_code()}
import json
text, head, options = map(json.loads, ({text!r}, {head!r}, {json.dumps(options)!r}))
"""
    if answer.rule:
        code += f"""
find = RULES[{answer.rule!r}]
text = find(text, {answer.entry!r}) or (find(head + text, {answer.entry!r}) if head else "")
"""
    code += f"{entry} = Answer(text, {answer.entry!r}, **options).{entry}\n"
    return PythonCall(code, entry, tuple(inputs))


async def run_tests(
    sandbox: Sandbox,
    answer: Answer,
    inputs: Sequence[tuple[JSON, ...]],
    *,
    view: str,
    timing: Timing,
    output_bytes: int,
    timed: bool = False,
) -> Outcome:
    """Call an answer with *inputs*; a large set in several calls, until one does not finish.

    Args:
        view: Of `inside.VIEWS`: what of each value comes back.
        output_bytes: Of the values of one call, as JSON.
        timed: Each value is ``[value, CPU seconds]``.

    Returns:
        An outcome whose value is that of all inputs in order, or the first that did not finish.

    Raises:
        SandboxFailure: The machine failed.
    """
    values: list[Any] = []
    seconds = 0.0
    for part in _parts(inputs):
        call = _call(
            answer, "call", part, view=view, seconds=timing.least, more=timing.more, timed=timed
        )
        limits = Limits(**{**vars(timing.limits), "output_bytes": output_bytes})
        outcome = await sandbox.run(call, limits)
        seconds += outcome.cpu_seconds
        if outcome.status is not Status.FINISHED:
            return outcome
        values += outcome.value
    return Outcome(Status.FINISHED, values, "", seconds)


def _parts(inputs: Sequence[tuple[JSON, ...]]) -> Iterator[list[tuple[JSON, ...]]]:
    """The inputs, each behind its number, in parts of bounded size."""
    part: list[tuple[JSON, ...]] = []
    size = 0
    for number, arguments in enumerate(inputs):
        length = len(json.dumps(arguments))
        if part and size + length > MOST_INPUT:
            yield part
            part, size = [], 0
        part.append((number, *arguments))
        size += length
    if part:
        yield part


async def run_assertions(
    sandbox: Sandbox, answer: Answer, assertions: Sequence[str], timing: Timing
) -> Outcome:
    """Try *assertions* on an answer; the value of the outcome is ``[[assertion, what it gives]]``.

    Raises:
        SandboxFailure: The machine failed.
    """
    call = _call(answer, "failures", [(list(assertions),)], seconds=timing.least)
    return await sandbox.run(call, timing.limits)
