"""The results table: means with 95 % intervals, and the difference to the best expert."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cqd_hub.recipe import Split
from cqd_hub.report._data import Group, RunData, load_run
from cqd_hub.report._text import percent, short
from cqd_hub.statistics import Interval, average_interval, mean_interval, paired_difference

_LABEL = 36  # characters of a label
_PREFERENCE: tuple[Split, ...] = ("test", "validation", "optimisation")


@dataclass(frozen=True)
class Row:
    """One model's line. All scores in 0..1; intervals are 95 % confidence intervals.

    Attributes:
        id: Its id in the journal.
        label: What to call it.
        group: base, expert, baseline, elite or aggregate.
        split: The samples all rows of the table were scored on.
        skills: Skill → its mean score (Wilson's interval; ``n`` samples).
        average: Unweighted mean over the skills.
        difference: Average minus the best expert's on the samples both answered, paired; None for
            that expert itself and where there is none.
        chosen: Whether it is the model the run chose.
    """

    id: int
    label: str
    group: Group
    split: Split
    skills: dict[str, Interval]
    average: Interval
    difference: Interval | None
    chosen: bool


def results_table(folder: Path) -> list[Row]:
    """Return the table of a run directory, finished or not, in the order to show it.

    On the test split where every row was measured there, else on the next one of validation and
    optimisation of which that holds (failing that, on the one with most rows, without the others).
    The best expert is the one of highest average on that split, which favours it: differences are
    rather too small than too large.

    Raises:
        UserError: No run directory, or one that cannot be read.
    """
    return table_of(load_run(folder))


def table_of(run: RunData) -> list[Row]:
    """`results_table` of a run already read."""
    split = _split(run)
    finalists = [one for one in run.finalists if _complete(run, split, one.id)]
    scores = {one.id: run.samples[split, one.id] for one in finalists}
    averages = {one.id: _average(run, scores[one.id]) for one in finalists}
    experts = [one.id for one in finalists if one.group == "expert"]
    best = max(experts, key=lambda number: averages[number].mean, default=None)
    return [
        Row(
            id=one.id,
            label=one.label,
            group=one.group,
            split=split,
            skills={skill: mean_interval(_array(scores[one.id][skill])) for skill in run.skills},
            average=averages[one.id],
            difference=None
            if best is None or one.id == best
            else _difference(run, scores[one.id], scores[best]),
            chosen=run.results is not None and one.id == run.results.chosen,
        )
        for one in finalists
    ]


def format_table(rows: Sequence[Row], *, width: int | None = None) -> str:
    """Return the table as plain text, scores in %.

    Args:
        rows: What `results_table` returned.
        width: Columns of the terminal. Where they do not suffice, the intervals of the single
            skills are left out, and then labels are cut. None keeps all.
    """
    if not rows:
        return "Nothing has been measured yet."
    lines = _plain(rows, intervals=True)
    if width is not None and len(lines[1]) > width:
        lines = _plain(rows, intervals=False)
        if len(lines[1]) > width:
            longest = max(len(short(row.label, _LABEL)) for row in rows)
            lines = _plain(
                rows, intervals=False, label=max(longest - len(lines[1]) + width, _LABEL // 3)
            )
    said = [*notes(rows), *(["* is the chosen model."] if any(row.chosen for row in rows) else [])]
    return "\n".join([*lines, "", textwrap.fill(" ".join(said), width or 100)])


def notes(rows: Sequence[Row]) -> list[str]:
    """Return what a reader must know to read the numbers, in sentences."""
    split = rows[0].split
    said = [
        f"Scores in % on the {split} samples; brackets are 95 % confidence intervals over samples "
        "(Wilson), for the average combined over skills."
    ]
    best = next((row for row in rows if row.group == "expert" and row.difference is None), None)
    if best is not None:
        said.append(
            f"The difference is to the best expert, {short(best.label, 40)}, on the same samples "
            "(paired, adjusted Wald), in points. It is not corrected for the number of rows "
            "compared."
        )
    if split == "optimisation":
        said.append(
            "The run has no test scores yet. Elites were selected on these very samples, so their "
            "scores flatter them."
        )
    elif split == "validation":
        said.append(
            "Not every row has test scores yet. The chosen model was selected on these samples, "
            "which flatters it."
        )
    return said


def as_json(rows: Sequence[Row]) -> str:
    """Return the rows as a JSON document, scores in 0..1."""
    return json.dumps([_record(row) for row in rows], indent=1) + "\n"


def as_csv(rows: Sequence[Row], skills: Sequence[str]) -> str:
    """Return the rows as CSV with a header, scores in 0..1."""
    names = ["average", "difference", *skills]
    header = ["id", "label", "group", "split", "chosen"]
    for name in names:
        header += [name, f"{name}_low", f"{name}_high", f"{name}_n"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        line: list[Any] = [
            row.id,
            short(row.label, 200),
            row.group,
            row.split,
            str(row.chosen).lower(),
        ]
        for value in (row.average, row.difference, *(row.skills[skill] for skill in skills)):
            line += ["", "", "", ""] if value is None else list(value)
        writer.writerow(line)
    return file.getvalue()


def _record(row: Row) -> dict[str, Any]:
    return {
        "id": row.id,
        "label": row.label,
        "group": row.group,
        "split": row.split,
        "chosen": row.chosen,
        "average": row.average._asdict(),
        "difference": None if row.difference is None else row.difference._asdict(),
        "skills": {skill: value._asdict() for skill, value in row.skills.items()},
    }


def _plain(rows: Sequence[Row], *, intervals: bool, label: int = _LABEL) -> list[str]:
    skills = list(rows[0].skills)
    heads = [f"{s} (n={_counts([row.skills[s].n for row in rows])})" for s in skills]
    lines = [["", *heads, "average", "vs best expert"]]
    for row in rows:
        cells = [
            _bracket(row.skills[skill]) if intervals else percent(row.skills[skill].mean)
            for skill in skills
        ]
        difference = "" if row.difference is None else _bracket(row.difference, signed=True)
        mark = "* " if row.chosen else "  "
        lines.append([mark + short(row.label, label), *cells, _bracket(row.average), difference])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    out = []
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        out.append("  ".join([line[0].ljust(widths[0]), *cells]).rstrip())
    out.insert(1, "-" * max(len(line) for line in out))
    return out


def _bracket(value: Interval, *, signed: bool = False) -> str:
    mean, low, high = (percent(v, signed=signed) for v in value[:3])
    return f"{mean} [{low}, {high}]"


def _counts(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}-{high}"


def _split(run: RunData) -> Split:
    def complete(split: Split) -> int:
        return sum(_complete(run, split, one.id) for one in run.finalists)

    for split in _PREFERENCE:
        if complete(split) == len(run.finalists):
            return split
    return max(_PREFERENCE, key=complete)


def _complete(run: RunData, split: Split, individual: int) -> bool:
    return set(run.skills) <= set(run.samples[split, individual])


def _array(scores: dict[str, float]) -> np.ndarray:
    return np.fromiter(scores.values(), float)


def _average(run: RunData, scores: dict[str, dict[str, float]]) -> Interval:
    return average_interval([_array(scores[skill]) for skill in run.skills])


def _difference(
    run: RunData, ours: dict[str, dict[str, float]], theirs: dict[str, dict[str, float]]
) -> Interval | None:
    common = {skill: sorted(ours[skill].keys() & theirs[skill].keys()) for skill in run.skills}
    if not all(common.values()):
        return None

    def paired(side: dict[str, dict[str, float]]) -> list[np.ndarray]:
        return [np.array([side[skill][one] for one in common[skill]]) for skill in run.skills]

    return paired_difference(paired(ours), paired(theirs))
