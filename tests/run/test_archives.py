"""Archives, and who is who, from a journal alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cqd_hub.errors import UserError
from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.recipe import Recipe
from cqd_hub.run.archives import expert_scores, make_cycle, replay, vector
from cqd_hub.run.journal import Individual, Journal, Role
from cqd_hub.run.select import find
from cqd_hub.search import Cycle, GridArchive, NoveltyArchive


def recipe(archive: dict[str, Any] | None = None, **search: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r",
            "base": "b",
            "experts": {"zoe": "z", "ann": "a"},
            "skills": {"y": {"task": "t"}, "x": {"task": "u"}, "w": {"task": "v"}},
            "search": {"archive": archive or {"kind": "grid", "bins": 6}, **search},
        }
    )


ARCHIVES: list[dict[str, Any]] = [
    {"kind": "grid", "bins": 6},
    {"kind": "grid", "bins": 5, "clip": False},
    {"kind": "grid", "bins": 4, "bounds": {"w": [0, 1], "x": [0.2, 0.9], "y": [0.1, 0.8]}},
    {"kind": "novelty", "capacity": 8},
]


def write(journal: Journal, number: int, role: Role, name: str, scores: dict[str, float]) -> None:
    """An individual with 20 samples of every skill."""
    journal.add(
        Individual(number, role, name, b"genes", f"h{number}"),
        [
            Measurement(skill, "optimisation", f"s{n}", float(n < round(20 * score)), "")
            for skill, score in scores.items()
            for n in range(20)
        ],
    )


def search(folder: Path, made: Recipe, children: int = 40) -> tuple[Journal, Cycle]:
    """A search on made-up scores, told in an order that is not that of ids."""
    journal, rng = Journal(folder, create=True), np.random.default_rng(0)
    write(journal, -1, Role.BASE, "base", {"y": 0.1, "x": 0.1, "w": 0.1})
    write(journal, 0, Role.EXPERT, "zoe", {"w": 0.3, "x": 0.2, "y": 0.9})
    write(journal, 1, Role.EXPERT, "ann", {"w": 0.8, "x": 0.7, "y": 0.1})
    cycle = make_cycle(made, expert_scores(journal))

    def tell(numbers: list[int]) -> None:
        journal.tell(numbers)
        for number in numbers:
            cycle.tell(number, vector(journal.scores_of(number, "optimisation"), made))

    tell([0, 1])
    for generation in range(children // 4):
        proposals = cycle.ask(generation, 4, 2 + 4 * generation)
        for proposal in reversed(proposals):
            scores = {skill: float(rng.uniform(0.1, 0.95)) for skill in ("w", "x", "y")}
            write(journal, proposal.individual, Role.CHILD, "child", scores)
        tell([proposal.individual for proposal in proposals][::-1])
    return journal, cycle


@pytest.mark.parametrize("archive", ARCHIVES)
def test_replaying_the_journal_gives_the_same_archives(
    tmp_path: Path, archive: dict[str, Any]
) -> None:
    made = recipe(archive)
    journal, cycle = search(tmp_path, made)
    journal.close()
    again = Journal(tmp_path)
    rebuilt = make_cycle(made, expert_scores(again))
    history = list(replay(rebuilt, made, again))
    assert [told.individual for told in history] == again.told()
    assert len(history) == 42
    for old, new in zip(cycle.archives, rebuilt.archives, strict=True):
        assert np.array_equal(old.elites.individuals, new.elites.individuals)
        assert np.array_equal(old.elites.scores, new.elites.scores)
        assert old.summary == new.summary
    assert cycle.ask(10, 4, 42) == rebuilt.ask(10, 4, 42)


def test_scores_are_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    made = recipe()
    journal, _ = search(tmp_path, made, children=0)
    assert expert_scores(journal)[0] == {"y": 0.9, "x": 0.2, "w": 0.3}
    assert vector(expert_scores(journal)[0], made).tolist() == [0.9, 0.2, 0.3]


def test_the_recipe_shapes_the_cycle() -> None:
    experts = [{"y": 0.9, "x": 0.2, "w": 0.3}, {"y": 0.1, "x": 0.7, "w": 0.8}]
    grid = make_cycle(recipe(ARCHIVES[2]), experts).archives[0]
    assert isinstance(grid, GridArchive)
    assert grid.cell_of(np.array([0.5, 0.2, 0.99])) == (0, 3)  # x from 0.2, w to 1
    novel = make_cycle(recipe(ARCHIVES[3]), experts).archives
    assert all(isinstance(archive, NoveltyArchive) for archive in novel)
    assert [archive.skill for archive in novel] == [0, 1, 2]
    drawn = {}
    for kind in ("elite", "random"):
        settings = {"kind": kind, "low": 0.001, "high": 1.0}
        cycle = make_cycle(recipe(sampling=settings), experts)
        for number, scores in enumerate(((0.9, 0.2, 0.3), (0.8, 0.9, 0.9), (0.1, 0.6, 0.7))):
            cycle.tell(number, np.array(scores))
        proposals = cycle.ask(0, 200, 3)
        drawn[kind] = sum(0 in proposal.parents for proposal in proposals)
    assert drawn["elite"] < 20 < 100 < drawn["random"]  # two of its three scores are the lowest


def test_finding_who_is_meant(tmp_path: Path) -> None:
    made = recipe()
    journal, cycle = search(tmp_path, made)
    write(journal, -2, Role.BASELINE, "equal merge", {"y": 0.5, "x": 0.5, "w": 0.5})
    write(journal, -3, Role.AGGREGATE, "aggregate", {"y": 0.5, "x": 0.5, "w": 0.5})
    write(journal, -4, Role.AGGREGATE, "aggregate", {"y": 0.6, "x": 0.5, "w": 0.5})

    def who(name: str) -> int:
        return find(name, tmp_path, made, journal).id

    assert [who(name) for name in ("17", "-1", "base", "zoe", "ann")] == [17, -1, -1, 0, 1]
    assert who("equal merge") == -2
    assert who("aggregate") == -4  # of the last session
    for k, skill in enumerate(("y", "x", "w")):
        best = cycle.archives[k].best
        assert best is not None
        assert who(f"best:{skill}") == best.individual
    for name, says in {
        "zoo": "nobody is called 'zoo' (did you mean 'zoe'?)",
        "???": "nobody is called '???' (name an id, base,",
        "best:z": "no skill 'z' (the run's skills are y, x, w)",
        "99": "has no individual 99",
        "--3": "nobody is called '--3'",
        "²": "nobody is called '²'",
        "best": "the run has not finished, so it has not chosen",
    }.items():
        with pytest.raises(UserError) as caught:
            who(name)
        assert says in str(caught.value)
    (tmp_path / "results.json").write_text(json.dumps({"chosen": 23, "told": len(journal.told())}))
    assert who("best") == 23


def test_a_run_without_elites(tmp_path: Path) -> None:
    journal = Journal(tmp_path, create=True)
    with pytest.raises(UserError, match="the run has no elites yet"):
        find("best:x", tmp_path, recipe(), journal)
