"""Choosing from a published archive: by name, by id, or the best that meets conditions."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from cqd_hub.errors import UserError
from cqd_hub.pull.published import Elite, Person, Published, clean

_CONDITION = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9_.-]*)\s*(>=|<=|==|!=|>|<|=)\s*(\S+)\s*")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
}
_AVERAGE = "average"


class Condition(NamedTuple):
    """``skill operator number``, on optimisation scores; the skill may be ``average``."""

    skill: str
    operator: str
    number: float

    def holds(self, elite: Elite) -> bool:
        """Whether *elite* meets it."""
        return _OPERATORS[self.operator](_score(elite, self.skill), self.number)


def parse_condition(text: str, skills: Sequence[str]) -> Condition:
    """Read ``db>=0.4``.

    Raises:
        UserError: Not of this form, or no such skill.
    """
    match = _CONDITION.fullmatch(text)
    if match is None or not _NUMBER.fullmatch(match[3]) or not math.isfinite(float(match[3])):
        raise UserError(
            f"{clean(text)!r} is no condition",
            where="--where",
            remedy="write SKILL, one of >= > <= < == !=, and a number, as --where 'db>=0.4'",
        )
    return Condition(_known(match[1], skills, "--where"), match[2], float(match[3]))


def select(
    elites: Iterable[Elite], conditions: Sequence[Condition], *, best: str | None = None
) -> list[Elite]:
    """The elites that meet all *conditions*; only the *best* (a skill, or average), if given.

    Equals are ordered by id.
    """
    found = [elite for elite in elites if all(one.holds(elite) for one in conditions)]
    if best is None or not found:
        return found
    return [max(found, key=lambda elite: (_score(elite, best), -elite.id))]


def find(
    who: str | None,
    published: Published,
    *,
    best: str | None = None,
    where: Sequence[str] = (),
) -> Person:
    """The individual that a person means.

    Args:
        who: An id, ``best``, ``best:SKILL``, ``aggregate``, or a name.
        best: Instead: a skill or ``average``, over the latest elites.
        where: Conditions on these.

    Raises:
        UserError: Nobody, or both ways at once.
    """
    skills = published.head.skills
    if (who is None) == (best is None):
        raise UserError("name either WHO or --best", where="pull", remedy="leave one out")
    if who is not None and where:
        raise UserError("means nothing with WHO", where="--where", remedy="use it with --best")
    if best is not None:
        conditions = [parse_condition(text, skills) for text in where]
        found = select(published.elites, conditions, best=_known(best, skills, "--best"))
        if not found:
            raise UserError(
                f"none of the {len({e.id for e in published.elites})} elites meets "
                + " and ".join(map(clean, where)),
                where=str(published),
                remedy="ask for less; `cqd-hub pull` without WHO lists them",
            )
        return _person(found[0].id, published)
    assert who is not None
    if re.fullmatch(r"-?[0-9]{1,18}", who):
        return _person(int(who), published)
    if who == "best":
        if published.head.chosen is None:
            raise UserError(
                "the run had not finished when it was pushed, so it has not chosen",
                where=str(published),
                remedy="use --best average, best:SKILL or an id",
            )
        return _person(published.head.chosen, published)
    if who.startswith("best:"):
        skill = _known(who[5:], skills, "WHO", average=False)
        leader = published.head.leader(skill)
        if leader is None:
            raise UserError(f"has no elite for {skill}", where=str(published))
        return _person(leader, published)
    return _named(who, published)


def _named(who: str, published: Published) -> Person:
    order = {"base": 0, "expert": 1, "seed": 2, "baseline": 3, "aggregate": 4, "child": 5}
    named: dict[str, Person] = {}
    # The latest of several aggregates or baselines of one name has the lowest id.
    for person in sorted(published.people.values(), key=lambda p: (order.get(p.role, 6), p.id)):
        named.setdefault(person.name, person)
    if who in named:
        return named[who]
    close = difflib.get_close_matches(who, [*named, "best"], n=1)
    raise UserError(
        f"nobody is called {clean(who)!r}",
        where=str(published),
        remedy=f"did you mean {clean(close[0])!r}?"
        if close
        else "`cqd-hub pull` without WHO lists the elites",
    )


def _person(number: int, published: Published) -> Person:
    if number not in published.people:
        raise UserError(
            f"has no individual {number}",
            where=str(published),
            remedy="`cqd-hub pull` without WHO lists the elites",
        )
    return published.people[number]


def _known(skill: str, skills: Sequence[str], where: str, *, average: bool = True) -> str:
    if skill in skills or (average and skill == _AVERAGE):
        return skill
    names = [*skills, _AVERAGE] if average else list(skills)
    close = difflib.get_close_matches(skill, names, n=1)
    raise UserError(
        f"no skill {clean(skill)!r}",
        where=where,
        remedy=f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(names)}",
    )


def _score(elite: Elite, skill: str) -> float:
    return elite.average if skill == _AVERAGE else elite.scores[skill]
