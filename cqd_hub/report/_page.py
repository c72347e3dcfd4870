"""The page people open: one self-contained HTML file without scripts or links."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from cqd_hub import __version__
from cqd_hub.recipe.schema import GridArchive
from cqd_hub.report._data import Candidate, RunData
from cqd_hub.report._drafts import speculation
from cqd_hub.report._facts import about, reproduction
from cqd_hub.report._figures import DPI
from cqd_hub.report._plan import compared
from cqd_hub.report._table import Row, headline, notes
from cqd_hub.report._text import cut, percent, short, visible
from cqd_hub.run.journal import Role

_ANSWERS = 2  # right ones shown per skill, and as many wrong ones


@dataclass(frozen=True)
class Picture:
    """A figure with its words.

    Attributes:
        name: File name under ``figures/``, without ending.
        png: The image.
        alt: What it shows, for those who do not see it.
        caption: What to look for.
        wide: Whether it needs the full width of the page.
    """

    name: str
    png: bytes
    alt: str
    caption: str
    wide: bool = True

    @property
    def source(self) -> str:
        """The image as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height to show it at: 100 CSS pixels per inch drawn."""
        # Both stand in the PNG's header.
        pixels = int.from_bytes(self.png[16:20]), int.from_bytes(self.png[20:24])
        return round(pixels[0] * 100 / DPI), round(pixels[1] * 100 / DPI)


class Answer(NamedTuple):
    """One answer to show."""

    sample: str
    question: str
    score: float
    text: str
    omitted: int
    finish: str
    note: str


class Answers(NamedTuple):
    """Some answers to one skill's test samples."""

    skill: str
    total: int
    right: int
    shown: list[Answer]


class Phase(NamedTuple):
    """Where a child's time goes; seconds, and the share of all phases (None for the total)."""

    name: str
    mean: float
    median: float
    share: float | None


def render(
    run: RunData,
    rows: Sequence[Row],
    *,
    table: Picture | None,
    maps: Sequence[Picture],
    curves: Picture | None,
    lineage: Picture | None,
) -> str:
    """Return the page. Everything from the run passes through `visible` and is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    package = files("cqd_hub.report")
    style = package.joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: (
            visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        ),
    )
    environment.filters |= {"percent": percent, "points": _points}
    template = environment.from_string(package.joinpath("page.html.j2").read_text(encoding="utf-8"))
    manifest = run.manifest
    spent = phases(run)
    children = sum(run.individuals[number].role == Role.CHILD for number in run.told)
    return template.render(
        style=Markup(style),
        digest=Markup(digest),
        version=__version__,
        run=run,
        seed=manifest.get("seed", run.recipe.seed),
        about=about(manifest),
        recipe=run.recipe,
        recipe_yaml=_yaml(manifest.get("recipe", {})),
        grid=isinstance(run.recipe.search.archive, GridArchive),
        children=children,
        rows=rows,
        counts={skill: _counts([row.skills[skill].n for row in rows]) for skill in run.skills},
        notes=notes(rows) if rows else [],
        headline=headline(rows),
        chosen=next((row for row in rows if row.chosen), None),
        candidates=_candidates(run),
        reproduce=reproduction(run),
        table=table,
        maps=maps,
        curves=curves,
        lineage=lineage,
        answers=sample_answers(run),
        phases=spent,
        speculation=speculation(run),
        planned=compared(run.folder, {phase.name: phase.mean for phase in spent}),
    )


def sample_answers(run: RunData) -> list[Answers]:
    """Return per skill the first right and the first wrong test answers of the chosen model."""
    found = []
    for skill in run.skills:
        # One per sample: repeats add nothing to look at.
        one_each = {m.sample: m for m in reversed(run.answers) if m.skill == skill}
        everything = [one_each[sample] for sample in sorted(one_each, key=_natural)]
        right = [m for m in everything if m.score >= 0.5]
        wrong = [m for m in everything if m.score < 0.5]
        shown = []
        for one in right[:_ANSWERS] + wrong[:_ANSWERS]:
            text, omitted = cut(one.text)
            question, left = cut(run.questions.get(skill, {}).get(one.sample, ""), lines=20)
            shown.append(
                Answer(
                    short(one.sample, 60),
                    question.strip() + ("\n…" if left else ""),
                    one.score,
                    text,
                    omitted,
                    one.finish,
                    short(one.note, 200),
                )
            )
        if shown:
            found.append(Answers(skill, len(everything), len(right), shown))
    return found


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that orders numbers in texts as numbers."""
    parts = re.split(r"([0-9]{1,18})", text)  # every second one is a number
    return [(int(part), "") if place % 2 else (0, part) for place, part in enumerate(parts)]


def phases(run: RunData) -> list[Phase]:
    """Return where the time of a child goes, the longest first, then from its start to its end."""
    recorded = [one.seconds for one in run.individuals.values() if one.role == Role.CHILD]
    names = {name for seconds in recorded for name in seconds} - {"total"}
    times = {name: np.array([one.get(name, 0.0) for one in recorded]) for name in names}
    everything = sum(float(time.sum()) for time in times.values())
    listed = [
        Phase(
            name,
            float(time.mean()),
            float(np.median(time)),
            float(time.sum()) / everything if everything else 0.0,
        )
        for name, time in times.items()
    ]
    listed.sort(key=lambda phase: (-phase.mean, phase.name))
    total = np.array([one["total"] for one in recorded if "total" in one])
    if len(total):
        listed.append(
            Phase(
                "one child, start to end (latency)",
                float(total.mean()),
                float(np.median(total)),
                None,
            )
        )
    return listed


class Considered(NamedTuple):
    """A line of how the model was chosen."""

    candidate: Candidate
    compared: bool  # a baseline: never chosen


def _candidates(run: RunData) -> list[Considered]:
    """Return who was scored on validation, the best first."""
    listed = run.results.candidates if run.results else ()
    return [
        Considered(one, one.id in run.individuals and run.individuals[one.id].role == Role.BASELINE)
        for one in sorted(listed, key=lambda one: -one.validation)
    ]


def _points(value: float) -> str:
    return percent(value, signed=True).replace("-", "−")


def _counts(counts: Sequence[int]) -> str:
    low, high = min(counts, default=0), max(counts, default=0)
    return str(low) if low == high else f"{low}–{high}"


def _yaml(content: Any) -> str:
    from ruamel.yaml import YAML

    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    file = io.StringIO()
    writer.dump(content, file)
    return file.getvalue()
