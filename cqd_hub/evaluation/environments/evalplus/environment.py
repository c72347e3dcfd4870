"""MBPP+ and HumanEval+: write a function, in one round or with a look at the visible tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.environments._data import find_data
from cqd_hub.evaluation.episodes import (
    COMPLETED,
    Environment,
    Episode,
    Message,
    Observation,
    Resources,
    Sample,
    Turn,
    Verdict,
)
from cqd_hub.evaluation.sandbox import Outcome, Sandbox, Status, printable
from cqd_hub.recipe import SPLITS

from .data import NAMES, Task, TestSet, read_records, task_of
from .expected import Expectations, Expected
from .faults import fault_of
from .judge import judge_of
from .prompts import NONE, OWN, Dialect, choose_prompts, visible_assertions
from .runner import Answer, Timing, run_assertions, run_tests

LEAST_SECONDS: dict[Dialect, float] = {"evalplus": 4.0, "cycleqd": 0.2}
UNDEFINED = "nothing defined"
_EVERY_SET: dict[str, tuple[TestSet, ...]] = {"base": ("base",), "plus": ("base", "plus")}


class EvalPlus(Environment):
    """One task: the problem, the model's program, all its tests.

    The score is 1 when every test passes (EvalPlus' pass@1). With several rounds a program that
    fails an assertion of the problem's text comes back with what it gave; the hidden tests are
    run once, at the end, and never shown.
    """

    class Options(Environment.Options):
        data: str = Field(
            default="",
            description="a .jsonl(.gz) file of EvalPlus, a folder with one, or a folder with "
            "optimisation, validation and test files of the same format",
        )
        tests: Literal["base", "plus"] = Field(
            default="plus", description="base: MBPP's or HumanEval's own; plus: these and more"
        )
        rounds: int = Field(default=1, ge=1, description="replies the model has")
        dialect: Dialect = Field(
            default="evalplus",
            description="how programs are found and timed: as EvalPlus 0.3.1, or as CycleQD",
        )
        prompts: str = Field(
            default=OWN, description="own, none (the problem alone), or a YAML file with `user`"
        )
        faithful: bool = Field(default=False, description="refuse prompts that are not given")

    repeatable = True
    options: Options

    def __init__(self, options: Options, folder: Path) -> None:
        super().__init__(options, folder)
        if not options.data:
            raise UserError(
                "no data are named",
                where="options.data",
                remedy="get MbppPlus-NoExtreme.jsonl.gz or HumanEvalPlus-NoExtreme.jsonl.gz of "
                "EvalPlus and name the file",
            )
        if options.faithful and options.prompts in (OWN, NONE):
            raise UserError(
                f"faithful: true, but prompts: {options.prompts}",
                where="options.prompts",
                remedy="name a YAML file with the original texts (docs/coding.md), or leave out "
                "faithful",
            )
        self.rounds = options.rounds
        self.least_seconds = LEAST_SECONDS[options.dialect]
        self.prompts = choose_prompts(options.prompts, options.dialect, folder)
        self.kind = f"{options.dialect}/{options.tests}/{self.prompts.kind}"
        self._records = _read(options.data, folder)
        self._expectations = Expectations()
        self._sandbox: Sandbox | None = None

    def samples(self) -> Mapping[str, Sequence[Sample]]:
        return {
            split: [
                Sample(
                    record["task_id"],
                    record["prompt"],
                    record,
                    fault_of(record["task_id"], self.options.tests),
                )
                for record in records
            ]
            for split, records in self._records.items()
        }

    async def open(self, resources: Resources) -> None:
        """Have the expected outputs of every task.

        Raises:
            UserError: A canonical solution, not known as faulty, has no outputs to compare with.
            SandboxFailure: The machine failed.
        """
        self._sandbox = await resources.sandbox()
        self.kind = f"{self.kind}/{self._sandbox.kind}"
        self.guarantees = self._sandbox.guarantees
        wanted = [
            (task_of(sample.document), tests)
            for samples in self.samples().values()
            for sample in samples
            if not sample.fault or self.options.faulty == "keep"
            for tests in _EVERY_SET[self.options.tests]
        ]
        await self._expectations.complete(wanted, self._sandbox, resources.note)

    async def begin(self, sample: Sample) -> Episode:
        if self._sandbox is None:
            raise RunError("the environment is not open")
        return _Coding(self, self._sandbox, task_of(sample.document))

    def expected(self, task: Task) -> dict[TestSet, Expected]:
        """The outputs an answer is compared with."""
        return {
            tests: self._expectations.of(task, tests) for tests in _EVERY_SET[self.options.tests]
        }


class _Coding(Episode):
    """One problem; its last program is the one that counts."""

    def __init__(self, environment: EvalPlus, sandbox: Sandbox, task: Task) -> None:
        self._environment, self._sandbox, self._task = environment, sandbox, task
        self.opening = environment.prompts.opening(task)
        self._left = environment.rounds
        self._last: Answer | None = None

    async def step(self, reply: Message) -> Turn:
        environment, task = self._environment, self._task
        self._left -= 1
        self._last = Answer(
            reply.content,
            task.entry,
            rule=environment.options.dialect,
            head=task.prompt if environment.options.prompts == NONE else "",
        )
        assertions = visible_assertions(task)
        if self._left > 0 and assertions:
            failures = await self._failures(self._last, assertions)
            if failures:
                return Observation((environment.prompts.feedback(failures),))
        return await self._judged(self._last, COMPLETED)

    async def end(self, status: str) -> Verdict:
        """Judge the last program."""
        if self._last is None:
            return Verdict(0.0, status)
        return await self._judged(self._last, status)

    async def _failures(self, answer: Answer, assertions: list[str]) -> list[tuple[str, str]]:
        """Assertions that do not hold, each with a short printable remark."""
        timing = Timing(self._environment.least_seconds, {})
        outcome = await run_assertions(self._sandbox, answer, assertions, timing)
        if outcome.status is not Status.FINISHED:
            return [(assertions[0], _remark(outcome))]
        result = outcome.value[0]
        if "error" in result:
            return [(assertions[0], printable(result["error"]))]
        # The answer may have written what is reported: the assertions shown are still ours.
        reported = result["ok"] if isinstance(result["ok"], list) else []
        remarks = {
            str(item[0]): printable(str(item[1]))
            for item in reported
            if isinstance(item, list) and len(item) == 2
        }
        return [(text, remarks[text]) for text in assertions if text in remarks]

    async def _judged(self, answer: Answer, status: str) -> Verdict:
        task, environment = self._task, self._environment
        judge, skipped = judge_of(task), 0
        for tests, expected in environment.expected(task).items():
            inputs = task.inputs[tests]
            usable = [number for number, result in enumerate(expected.results) if "ok" in result]
            skipped += len(inputs) - len(usable)
            if not usable:
                continue
            outcome = await run_tests(
                self._sandbox,
                answer,
                inputs if len(usable) == len(inputs) else [inputs[number] for number in usable],
                view=judge.view,
                timing=Timing(
                    environment.least_seconds,
                    {
                        str(place): expected.seconds[str(number)]
                        for place, number in enumerate(usable)
                        if str(number) in expected.seconds
                    },
                ),
                output_bytes=expected.output_bytes,
            )
            if outcome.status is not Status.FINISHED:
                undefined = outcome.detail.startswith("Undefined: ")
                return Verdict(0.0, UNDEFINED if undefined else status, _remark(outcome))
            for number, result in zip(usable, outcome.value, strict=True):
                if "error" in result:
                    note = f"{tests} input {number}: {printable(result['error'])}"
                    return Verdict(0.0, status, note)
                if not judge.right(
                    result["ok"], expected.results[number]["ok"], inputs[number], task.tolerance
                ):
                    return Verdict(0.0, status, f"{tests} input {number}: wrong value")
        note = f"{skipped} inputs without an expected output were left out" if skipped else ""
        return Verdict(1.0, status, note)


def _remark(outcome: Outcome) -> str:
    return f"{outcome.status}: {outcome.detail}" if outcome.detail else str(outcome.status)


def _read(data: str, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Split → records: ``test`` alone, or each of our three from its own file."""
    names = (f"{SPLITS[0]}.jsonl*", *NAMES, *(f"{split}.jsonl*" for split in SPLITS[1:]))
    path = find_data(data, folder, names=names, where="options.data")
    if not path.name.startswith(f"{SPLITS[0]}.jsonl") or path == folder / data:
        return {"test": read_records(path)}
    return {
        split: read_records(path.with_name(path.name.replace(SPLITS[0], split))) for split in SPLITS
    }
