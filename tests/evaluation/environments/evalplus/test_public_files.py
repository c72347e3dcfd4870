"""The published MBPP+ files, where they lie in ``shared/data`` beside the checkout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cqd_hub.evaluation.environments.evalplus.data import read_records, task_of
from cqd_hub.evaluation.environments.evalplus.prompts import visible_assertions

from .common import Ground, canonical, write

Open = Callable[..., Ground]
FOLDER = Path(__file__).parents[5] / "shared" / "data" / "mbppplus"
NO_EXTREME, EXTREME = (
    FOLDER / f"MbppPlus{kind}.jsonl.gz" for kind in ("-NoExtreme", "")
)  # fmt: skip
# Every oracle, every form of inputs, no plus inputs at all (793).
SAMPLE = {
    *(2, 3, 6, 63, 75, 106, 124, 232, 252, 259, 278, 301, 558, 580, 581, 590),
    *(722, 737, 787, 793, 794),
}
pytestmark = pytest.mark.skipif(
    not NO_EXTREME.exists(), reason=f"the MBPP+ files are not there: {FOLDER}"
)


def failing(opened: Ground, only: set[int] | None = None) -> list[str]:
    """Ids of the tasks whose canonical solution gets no point, faulty ones left out."""
    failed = []
    for samples in opened.environment.samples().values():
        for sample in samples:
            task = task_of(sample.document)
            if sample.fault or (only is not None and task.number not in only):
                continue
            opened.samples[task.entry] = sample  # two tasks may share a name
            verdict = opened.verdict(task.entry, f"```python\n{canonical(sample.document)}\n```")
            if verdict.score < 1:
                failed.append(f"{task.id}: {verdict.note}")
    return failed


def test_the_files_are_those_we_know() -> None:
    records = read_records(NO_EXTREME)
    assert len(records) == 378
    assert sum(len(record["base_input"]) for record in records) == 1174
    assert sum(len(record["plus_input"]) for record in records) == 39636
    assert all(len(visible_assertions(task_of(record))) == 1 for record in records)


def test_canonical_solutions_of_a_sample(ground: Open, tmp_path: Path) -> None:
    records = [r for r in read_records(NO_EXTREME) if task_of(r).number in SAMPLE]
    opened = ground(write(tmp_path / "sample.jsonl", records))
    assert failing(opened) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", [NO_EXTREME, EXTREME], ids=["no-extreme", "extreme"])
def test_every_canonical_solution(ground: Open, path: Path) -> None:
    base = ground(path, tests="base")
    assert [sample.fault for sample in base.samples.values() if sample.fault] == []
    assert failing(base) == []
    plus = ground(path, tests="plus")
    faulty = [s.id for found in plus.environment.samples().values() for s in found if s.fault]
    assert faulty == ["Mbpp/255"]
    assert failing(plus) == []


@pytest.mark.slow
def test_the_named_fault_is_one(ground: Open, tmp_path: Path) -> None:
    record = next(r for r in read_records(NO_EXTREME) if r["task_id"] == "Mbpp/255")
    kept = ground(write(tmp_path / "one.jsonl", [record]), faulty="keep")
    verdict = kept.verdict("combinations_colors", canonical(record))
    assert verdict.score == 1
    assert "inputs without an expected output were left out" in verdict.note


@pytest.mark.slow
def test_doing_nothing_passes_nothing(ground: Open) -> None:
    opened = ground(NO_EXTREME, tests="base")
    passed = [
        entry
        for entry in opened.samples
        if opened.verdict(entry, f"def {entry}(*arguments):\n    return None").score
    ]
    assert passed == []
