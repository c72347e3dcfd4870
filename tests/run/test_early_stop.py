"""Children that are asked no more once no archive could keep them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import pytest

from cqd_hub.evaluation.engine import Candidate
from cqd_hub.evaluation.evaluator import Evaluator
from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.genome import Basis, Genome
from cqd_hub.randomness import generator
from cqd_hub.recipe import SPLITS, Recipe
from cqd_hub.run.archives import expert_scores, make_cycle, replay, vector
from cqd_hub.run.children import Children
from cqd_hub.run.executors import Job
from cqd_hub.run.executors._local import LocalExecutor
from cqd_hub.run.executors._messages import decode_order, encode_order
from cqd_hub.run.journal import Journal, Role
from cqd_hub.run.lineup import Lineup
from cqd_hub.run.progress import Silent
from cqd_hub.run.racing import Standing
from cqd_hub.run.recorder import Recorder

SAMPLES = {"x": 24, "y": 30, "w": 20}


class Question(NamedTuple):
    id: str


class MadeUp:
    """A skill whose scores follow from who answers what, with no engine."""

    def __init__(self, name: str, repeats: int) -> None:
        self.name, self._repeats = name, repeats
        questions = [Question(f"{name}{n}") for n in range(SAMPLES[name])]
        self.samples = dict.fromkeys(SPLITS, questions)
        self.asked = 0

    async def measure(
        self, means: Any, candidate: Candidate, split: Any, sample: Question, drafts: Any
    ) -> Sequence[Measurement]:
        self.asked += 1
        number = int(sample.id[1:])
        rng = generator(candidate.id, number, self.name)
        ability = generator(candidate.id, 0, f"ability {self.name}").uniform(0.1, 0.6)
        if candidate.id < 3:  # the experts
            ability = 0.8 if list(SAMPLES)[candidate.id] == self.name else 0.2
        return [
            Measurement(self.name, split, sample.id, float(rng.uniform() < ability), "", repeat=n)
            for n in range(self._repeats)
        ]

    def recall(self, judged: Any, verdicts: Any) -> None:
        pass

    def said(self, measurement: Measurement) -> Sequence[Any]:
        return ()


class Searched(NamedTuple):
    journal: Journal
    recipe: Recipe
    elites: list[list[tuple[int, tuple[float, ...]]]]
    asked: int


def search(
    folder: Path,
    basis: Basis,
    *,
    early_stop: bool,
    bins: int = 3,
    children: int = 40,
    workers: int = 1,
    repeats: int = 1,
) -> Searched:
    """The real children, recorder, journal and executor; only answers are made up."""
    folder.mkdir(exist_ok=True)
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "base": "b",
            "experts": {"one": "1", "two": "2", "three": "3"},
            "skills": {name: {"task": name} for name in SAMPLES},
            "search": {
                "children": children,
                "archive": {"kind": "grid", "bins": bins},
                "early_stop": early_stop,
            },
        }
    )
    skills = {name: MadeUp(name, repeats) for name in SAMPLES}
    engine = SimpleNamespace(width=2, seconds={}, canonical=None)
    evaluator = Evaluator(cast(Any, engine), cast(Any, skills), None)
    bench = SimpleNamespace(engine=engine, merges=None, evaluator=evaluator)
    executor = LocalExecutor(cast(Any, bench))
    executor.workers = workers
    journal = Journal(folder, create=True)
    executor.recall(journal)
    recorder = Recorder(executor, journal)

    async def go() -> Any:
        if not journal.told():
            for number, name in enumerate(recipe.experts):
                genome = Genome.of_expert(basis.hash, basis.layout, number)
                await recorder.add(number, Role.EXPERT, name, genome)
            journal.tell(range(3))
        cycle = make_cycle(recipe, expert_scores(journal))
        for _ in replay(cycle, recipe, journal):
            pass
        lineup = Lineup(recipe, cast(Any, None), basis, {}, None)
        await Children(
            lineup,
            executor,
            recorder,
            journal,
            cycle,
            skill_expert=(0, 1, 2),
            first=3,
            observer=Silent(),
            stop=asyncio.Event(),
        ).go()
        return cycle

    cycle = asyncio.run(go())
    elites = [[(e.individual, tuple(e.scores)) for e in one.elites] for one in cycle.archives]
    return Searched(journal, recipe, elites, sum(skill.asked for skill in skills.values()))


@pytest.mark.parametrize(("bins", "repeats"), [(1, 1), (3, 1), (3, 2), (15, 1)])
def test_the_archives_are_those_of_a_run_without(
    tmp_path: Path, basis: Basis, bins: int, repeats: int
) -> None:
    without = search(tmp_path / "a", basis, early_stop=False, bins=bins, repeats=repeats)
    stopping = search(tmp_path / "b", basis, early_stop=True, bins=bins, repeats=repeats)
    assert stopping.elites == without.elites
    assert stopping.journal.told() == without.journal.told()
    whole = sum(SAMPLES.values())
    stopped = stopping.journal.stopped()
    assert not without.journal.stopped()
    assert without.asked - stopping.asked == sum(whole - sum(n.values()) for n in stopped.values())
    assert len(stopped) >= 5 or bins == 15
    kept = {number for elites in stopping.elites for number, _ in elites}
    for number, answered in stopped.items():
        assert number not in kept
        scores = stopping.journal.sample_scores(number, "optimisation")
        assert {skill: len(scores.get(skill, ())) for skill in SAMPLES} == answered
        assert sum(answered.values()) < whole
        both = without.journal.sample_scores(number, "optimisation")
        assert all(scores[skill].items() <= both[skill].items() for skill in scores)


def test_who_is_stopped_is_told_and_offered_to_no_archive(tmp_path: Path, basis: Basis) -> None:
    made = search(tmp_path, basis, early_stop=True)
    rebuilt = make_cycle(made.recipe, expert_scores(made.journal))
    history = list(replay(rebuilt, made.recipe, made.journal))
    assert [one.individual for one in history] == made.journal.told() == list(range(43))
    stopped = made.journal.stopped()
    for one in history:
        assert (one.insertions == ()) == (one.individual in stopped)
        assert bool(np.isnan(one.scores).all()) == (one.individual in stopped)
    assert [[(e.individual, tuple(e.scores)) for e in a.elites] for a in rebuilt.archives] == (
        made.elites
    )


def test_a_run_goes_on_as_if_it_had_never_stopped(tmp_path: Path, basis: Basis) -> None:
    whole = search(tmp_path / "a", basis, early_stop=True)
    search(tmp_path / "b", basis, early_stop=True, children=20)
    resumed = search(tmp_path / "b", basis, early_stop=True)
    assert resumed.elites == whole.elites
    assert resumed.journal.stopped() == whole.journal.stopped()
    assert resumed.journal.told() == whole.journal.told()


def test_a_decision_holds_when_it_is_told_later(tmp_path: Path, basis: Basis) -> None:
    # With several workers others are told between a child's question and its answer.
    made = search(tmp_path / "a", basis, early_stop=True, workers=2)
    told, stopped = made.journal.told(), made.journal.stopped()
    assert stopped
    cycle = make_cycle(made.recipe, expert_scores(made.journal))
    without = search(tmp_path / "b", basis, early_stop=False)  # the same answers, all of them
    everybody = without.journal.scores("optimisation")
    for number in told:
        insertions = cycle.tell(number, vector(everybody[number], made.recipe))
        if number in stopped:
            assert {one.status for one in insertions} == {"rejected"}
    assert [[(e.individual, tuple(e.scores)) for e in a.elites] for a in cycle.archives] == (
        made.elites
    )


def test_a_standing_travels_and_decides_the_same(tmp_path: Path, basis: Basis) -> None:
    made = search(tmp_path, basis, early_stop=False)
    cycle = make_cycle(made.recipe, expert_scores(made.journal))
    for _ in replay(cycle, made.recipe, made.journal):
        pass
    standing = Standing.of(cycle, made.recipe)
    genome = Genome.of_expert(basis.hash, basis.layout, 0)
    job = Job(Candidate(7, genome), "optimisation", ("w", "x", "y"), (1, 2), standing)
    moved = decode_order(encode_order(job, {})).job
    assert moved.standing is not None
    assert moved.skills == job.skills
    assert decode_order(encode_order(job._replace(standing=None), {})).job.standing is None
    rng, decided = np.random.default_rng(0), []
    for _ in range(300):
        low = rng.uniform(0, 0.9, 3)
        high = np.minimum(low + rng.uniform(0, 0.2, 3), 1)
        bounds = {skill: (low[k], high[k]) for k, skill in enumerate(made.recipe.skills)}
        decided.append(cycle.out_of_reach(low, high))
        assert standing.decided(bounds) == moved.standing.decided(bounds) == decided[-1]
    assert 0 < sum(decided) < 300


def test_last_comes_the_skill_with_most_samples_to_a_cell() -> None:
    bounds = np.array([[0.0, 1.0], [0.2, 0.4], [0.1, 0.9]])
    standing = Standing(("x", "y", "w"), bounds, 5, tuple(np.zeros((0, 3)) for _ in range(3)))
    assert standing.order({"x": 50, "y": 50, "w": 50}) == ("y", "w", "x")
    assert standing.order({"x": 10, "y": 200, "w": 50}) == ("x", "y", "w")
    assert not standing.decided({"x": (0, 0), "y": (0, 0), "w": (0, 0)})
