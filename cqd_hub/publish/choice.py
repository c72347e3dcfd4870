"""Which individuals become model repositories, under what names, and in which form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from cqd_hub.errors import UserError
from cqd_hub.publish.view import View
from cqd_hub.run.journal import Role
from cqd_hub.search import GridArchive

Form = Literal["adapter", "checkpoint"]
ASKED = "best, best:SKILL, cell:SKILL:3-7, aggregate, an id, or none"
_MOST = 10  # unasked


class Chosen(NamedTuple):
    """An individual to publish.

    Args:
        individual: Its id.
        labels: What it is, the first of them in the repository's name.
        place: Its cell or archive, in words.
    """

    individual: int
    labels: tuple[str, ...]
    place: str

    def repo(self, archive: str) -> str:
        """Its repository."""
        return f"{archive}-{self.labels[0]}"


def choose(view: View, asked: Sequence[str] | None) -> list[Chosen]:
    """The individuals that are asked for, each once.

    Args:
        asked: See `ASKED`; None for what a finished run is best at: the chosen one, every
            archive's best and the aggregate, at most ten, experts left out.

    Raises:
        UserError: Nobody of that name.
    """
    if asked is None:
        if view.results is None:
            return []
        aggregate = ["aggregate"] if _aggregate(view) is not None else []
        asked = ["best", *(f"best:{skill}" for skill in view.recipe.skills), *aggregate]
        return [one for one in _grouped(view, asked) if not _is_expert(view, one)][:_MOST]
    return _grouped(view, [one for one in asked if one != "none"])


def _is_expert(view: View, one: Chosen) -> bool:
    return view.individuals[one.individual].role == Role.EXPERT


def _grouped(view: View, asked: Sequence[str]) -> list[Chosen]:
    labels: dict[int, list[str]] = {}
    for who in asked:
        number, label = _resolve(view, who)
        known = labels.setdefault(number, [])
        known += [label] if label not in known else []
    return [Chosen(number, tuple(known), _place(view, number)) for number, known in labels.items()]


def _resolve(view: View, who: str) -> tuple[int, str]:
    where = str(view.folder)
    if who == "best":
        if view.results is None:
            raise UserError(
                "the run has not finished, so it has not chosen",
                where=where,
                remedy="finish it with the same `cqd-hub evolve`, or name an id",
            )
        return int(view.results["chosen"]), "best"
    if who == "aggregate":
        number = _aggregate(view)
        if number is None:
            raise UserError(
                "the run has no aggregate yet",
                where=where,
                remedy="finish it with the same `cqd-hub evolve`",
            )
        return number, "aggregate"
    if who.startswith("best:"):
        best = _archive(view, who[5:]).best
        assert best is not None  # the experts were told
        return best.individual, f"best-{_plain(who[5:])}"
    if match := re.fullmatch(r"cell:(.+):(\d+(?:-\d+)*)", who):
        return _in_cell(view, match[1], tuple(map(int, match[2].split("-"))))
    if re.fullmatch(r"-?\d{1,18}", who):
        number = int(who)
        if number not in view.individuals:
            raise UserError(f"has no individual {number}", where=where)
        return number, _label(number)
    raise UserError(f"nobody is called {who!r}", where="--elites", remedy=f"name {ASKED}")


def _in_cell(view: View, skill: str, cell: tuple[int, ...]) -> tuple[int, str]:
    archive = _archive(view, skill)
    elite = archive.cells.get(cell) if isinstance(archive, GridArchive) else None
    if elite is None:
        name = "-".join(map(str, cell))
        raise UserError(f"the archive of {skill} has nobody in cell {name}", where="--elites")
    return elite.individual, _label(elite.individual)


def _archive(view: View, skill: str) -> Any:
    skills = list(view.recipe.skills)
    if skill not in skills:
        raise UserError(
            f"no skill {skill!r}",
            where="--elites",
            remedy=f"the run's skills are {', '.join(skills)}",
        )
    assert view.cycle is not None
    return view.cycle.archives[skills.index(skill)]


def _aggregate(view: View) -> int | None:
    numbers = [one.id for one in view.individuals.values() if one.role == Role.AGGREGATE]
    return min(numbers, default=None)  # later ones have lower ids


def _place(view: View, number: int) -> str:
    assert view.cycle is not None
    found = []
    for skill, archive in zip(view.recipe.skills, view.cycle.archives, strict=True):
        for elite in archive.elites:
            if elite.individual == number:
                cell = archive.cell_of(elite.scores)
                found.append(skill if cell is None else f"{skill} {'-'.join(map(str, cell))}")
    return f"elite of {', '.join(found)}" if found else "in no archive"


def _label(number: int) -> str:
    return f"id-{number}" if number >= 0 else f"id-m{-number}"


def _plain(skill: str) -> str:
    """A skill's name as part of a repository's."""
    return re.sub(r"([.-])[.-]+", r"\1", skill).strip(".-_") or "skill"


def usual_form(view: View, layout: Mapping[str, Any], *, base: str | None) -> Form:
    """An adapter where it is exact and clearly smaller than the model, and its base on the Hub."""
    variation = view.recipe.variation
    exact = variation.mutation.kind != "gaussian" and variation.crossover.method == "linear"
    small = adapter_bytes(layout) < model_bytes(layout) / 4
    return "adapter" if base is not None and exact and small else "checkpoint"


def adapter_bytes(layout: Mapping[str, Any]) -> int:
    """About what an exact fp32 adapter takes."""
    size = 0
    for (_, shape, kind, *_), ranks in zip(layout["slots"], layout["ranks"], strict=True):
        size += 4 * shape[0] if kind == "vector" else 4 * min(sum(ranks), *shape) * sum(shape)
    return size


def model_bytes(layout: Mapping[str, Any]) -> int:
    """What a model takes at most (in fp32)."""
    size = 0
    for _, shape, *_ in layout["slots"]:
        count = 4
        for dimension in shape:
            count *= dimension
        size += count
    return size
