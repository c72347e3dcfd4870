"""The results table: means with 95 % intervals, and the difference to the best expert."""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cqd_hub.recipe import Split
from cqd_hub.report._data import Group, RunData, load_run
from cqd_hub.report._text import percent, short
from cqd_hub.statistics import Interval, average_interval, mean_interval, paired_difference

_LABEL = 36  # characters of a label
_FOLDED = 17  # and of its lines, at least, where it is folded
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
        against: Of the chosen model: id of each baseline → average minus that baseline's, paired
            like *difference*. Empty for all others.
    """

    id: int
    label: str
    group: Group
    split: Split
    skills: dict[str, Interval]
    average: Interval
    difference: Interval | None
    chosen: bool
    against: dict[int, Interval] = field(default_factory=dict)


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
    chosen = run.results.chosen if run.results is not None else None

    def against(number: int) -> dict[int, Interval]:
        baselines = [one.id for one in finalists if one.group == "baseline" and one.id != number]
        found = {one: _difference(run, scores[number], scores[one]) for one in baselines}
        return {one: interval for one, interval in found.items() if interval is not None}

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
            chosen=one.id == chosen,
            against=against(one.id) if one.id == chosen else {},
        )
        for one in finalists
    ]


def format_table(rows: Sequence[Row], *, width: int | None = None) -> str:
    """Return the table as plain text, scores in %.

    Args:
        rows: What `results_table` returned.
        width: Columns there are. Where they do not suffice, the intervals of the single skills are
            left out, then their numbers of samples, then the skills; long labels take several
            lines. None keeps all.
    """
    if not rows:
        return "Nothing has been measured yet."
    lines, counted = _fitting(rows, width)
    said = notes(rows)
    if not counted:
        counts = {skill: _counts([row.skills[skill].n for row in rows]) for skill in rows[0].skills}
        said.append(
            "Samples: " + ", ".join(f"{skill} {count}" for skill, count in counts.items()) + "."
        )
    if any(row.chosen for row in rows):
        said.append("* is the chosen model.")
    texts = [text for text in (" ".join(headline(rows)), " ".join(said)) if text]
    return "\n\n".join(["\n".join(lines), *(_wrapped(text, width) for text in texts)])


def headline(rows: Sequence[Row]) -> list[str]:
    """Return how the chosen model stands against the best expert and the baselines, in sentences.

    Differences are in points with their intervals; nothing where no model was chosen.
    """
    row = next((row for row in rows if row.chosen), None)
    if row is None:
        return []
    said = [
        f"The chosen model, {short(row.label, 60)}, has an average of {_bracket(row.average)} % "
        f"on {row.split}."
    ]
    others = [other for other in rows if other.id in row.against]
    compared = [(_baseline(other), row.against[other.id]) for other in others]
    best = _best_expert(rows)
    if best is row:
        said.append("It is the best expert itself.")
    elif best is not None and row.difference is not None:
        compared.insert(0, (f"the best expert ({short(best.label, 40)})", row.difference))
    for verdict, holds in (
        ("Better than", lambda gain: gain.low > 0),
        ("No clear difference from", lambda gain: gain.low <= 0 <= gain.high),
        ("Worse than", lambda gain: gain.high < 0),
    ):
        found = [f"{name}, {_bracket(gain, signed=True)}" for name, gain in compared if holds(gain)]
        if found:
            said.append(f"{verdict}: {'; '.join(found)} points.")
    return said


def notes(rows: Sequence[Row]) -> list[str]:
    """Return what a reader must know to read the numbers, in sentences."""
    split = rows[0].split
    said = [
        f"Scores in % on the {split} samples; brackets are 95 % confidence intervals over samples "
        "(Wilson), for the average combined over skills."
    ]
    best = _best_expert(rows)
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
        "difference_to_baselines": {
            str(number): value._asdict() for number, value in row.against.items()
        },
        "skills": {skill: value._asdict() for skill, value in row.skills.items()},
    }


def _best_expert(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row.group == "expert" and row.difference is None), None)


def _baseline(row: Row) -> str:
    """A baseline in a sentence; of the scalings, only the best on validation is a row."""
    label = short(row.label, 40)
    return f"the best scaling ({label})" if label.startswith("all experts") else f"the {label}"


def _fitting(rows: Sequence[Row], width: int | None) -> tuple[list[str], bool]:
    """The fullest table that fits, and whether its head counts the samples."""
    if width is None:
        return _plain(rows, skills=_columns(rows, intervals=True)), True
    longest = max(len(short(row.label, _LABEL)) for row in rows)
    everything: list[tuple[list[list[str]], bool]] = [
        (_columns(rows, intervals=True), True),
        (_columns(rows), True),
        (_columns(rows, counts=False), False),
        ([[] for _ in range(len(rows) + 1)], False),
    ]

    def room(skills: list[list[str]]) -> int:
        return width - max(map(len, _plain(rows, skills=skills, label=0)))

    skills, counted = next(
        (one for one in everything if room(one[0]) >= min(longest, _FOLDED)), everything[-1]
    )
    return _plain(rows, skills=skills, label=max(room(skills), _LABEL // 3)), counted


def _columns(
    rows: Sequence[Row], *, intervals: bool = False, counts: bool = True
) -> list[list[str]]:
    """Per line, the head first, the cells of the single skills."""
    skills = list(rows[0].skills)
    heads = [f"{s} (n={_counts([row.skills[s].n for row in rows])})" for s in skills]
    lines = [heads if counts else [short(skill, 12) for skill in skills]]
    for row in rows:
        scores = [row.skills[skill] for skill in skills]
        lines.append([_bracket(one) if intervals else percent(one.mean) for one in scores])
    return lines


def _plain(rows: Sequence[Row], *, skills: list[list[str]], label: int = _LABEL) -> list[str]:
    """The lines of the table, a rule under the first; labels folded at *label*, 0 for none."""
    lines = [([""], [*skills[0], "average", "vs best expert"])]
    for row, cells in zip(rows, skills[1:], strict=True):
        difference = "" if row.difference is None else _bracket(row.difference, signed=True)
        names = [f"  {line}" for line in _folded(row.label, label)]
        if row.chosen:
            names[0] = f"*{names[0][1:]}"
        lines.append((names, [*cells, _bracket(row.average), difference]))
    first = max(len(name) for names, _ in lines for name in names)
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in lines), strict=True)]
    out = []
    for names, cells in lines:
        right = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        out.append("  ".join([names[0].ljust(first), *right]).rstrip())
        out += names[1:]
    out.insert(1, "-" * max(map(len, out)))
    return out


def _wrapped(text: str, width: int | None) -> str:
    """Prose in lines, intervals in one piece."""
    whole = re.sub(r"\[[^\[\]]*\]", lambda found: found.group().replace(" ", "\xa0"), text)
    return textwrap.fill(whole, min(width or 100, 100)).replace("\xa0", " ")


def _folded(label: str, width: int) -> list[str]:
    """A label in lines of at most *width* characters; one empty line for 0."""
    if not width:
        return [""]
    return textwrap.wrap(short(label, 2 * _LABEL), width, subsequent_indent="  ") or [""]


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
