"""Naming an individual of a run: an id, an expert, or what it is best at."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path

from cqd_hub.errors import UserError
from cqd_hub.recipe import Recipe
from cqd_hub.run.archives import expert_scores, make_cycle, replay
from cqd_hub.run.journal import Individual, Journal, Role

WHO = "an id, base, an expert's name, best, best:SKILL or aggregate"


def find(who: str, folder: Path, recipe: Recipe, journal: Journal) -> Individual:
    """Return the individual that *who* names.

    Args:
        who: See `WHO`; ``best`` is what the run chose on validation, ``best:SKILL`` the best elite
            of that skill's archive.

    Raises:
        UserError: Nobody of that name.
    """
    if re.fullmatch(r"-?[0-9]{1,18}", who):
        return journal.individual(int(who))
    if who == "best":
        return journal.individual(_chosen(folder, journal))
    if who.startswith("best:"):
        return journal.individual(_best_for(who[5:], recipe, journal))
    named: dict[str, Individual] = {}
    for role in (Role.BASE, Role.EXPERT, Role.BASELINE, Role.AGGREGATE):
        for individual in journal.individuals(role):  # later aggregates have lower ids
            named.setdefault(individual.name, individual)
    if who not in named:
        close = difflib.get_close_matches(who, [*named, "best"], n=1)
        raise UserError(
            f"nobody is called {who!r}",
            where=str(folder),
            remedy=f"did you mean {close[0]!r}?" if close else f"name {WHO}",
        )
    return named[who]


def _best_for(skill: str, recipe: Recipe, journal: Journal) -> int:
    names = list(recipe.skills)
    if skill not in names:
        raise UserError(f"no skill {skill!r}", remedy=f"the run's skills are {', '.join(names)}")
    if not journal.told():
        raise UserError(
            "the run has no elites yet", where=str(journal.path.parent), remedy="wait for some"
        )
    cycle = make_cycle(recipe, expert_scores(journal))
    for _ in replay(cycle, recipe, journal):
        pass
    best = cycle.archives[names.index(skill)].best
    assert best is not None  # the experts were told, and an archive that had one keeps one
    return best.individual


def _chosen(folder: Path, journal: Journal) -> int:
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        if results["told"] == len(journal.told()):
            return results["chosen"]
        raise UserError(
            "the run has gone on since it chose",
            where=str(folder),
            remedy="finish it with the same `cqd-hub evolve`, or name an id",
        )
    except FileNotFoundError:
        raise UserError(
            "the run has not finished, so it has not chosen",
            where=str(folder),
            remedy="finish it with the same `cqd-hub evolve`, or name an id",
        ) from None
