"""A run directory read into memory: what figures, table and page are made from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from pydantic import ValidationError

from cqd_hub.errors import UserError
from cqd_hub.recipe import SPLITS, Recipe, Split
from cqd_hub.run.archives import make_cycle, vector
from cqd_hub.run.journal import Journal, Measurement, Role
from cqd_hub.run.questions import Questions, read_questions
from cqd_hub.search import Archive

Group = Literal["base", "expert", "baseline", "elite", "aggregate"]
_GROUPS: tuple[Group, ...] = get_args(Group)


class Finalist(NamedTuple):
    """A line of the results table."""

    id: int
    label: str
    group: Group


class Candidate(NamedTuple):
    """A model scored on validation; averages in 0..1, None where it was not measured."""

    id: int
    label: str
    validation: float
    optimisation: float | None


class Results(NamedTuple):
    """The content of ``results.json``."""

    finalists: tuple[Finalist, ...]
    chosen: int
    chosen_by: str
    candidates: tuple[Candidate, ...]


class Known(NamedTuple):
    """An individual without its genome."""

    role: Role
    name: str
    generation: int | None
    lineage: dict[str, Any]
    seconds: dict[str, float]
    generated: dict[str, int]


class History(NamedTuple):
    """The archives after each child; row 0 is after the experts.

    Attributes:
        children: (n,) children told so far.
        qd_score: (n, K) per archive.
        coverage: (n, K) per archive, 0..1.
        best: (n, K) highest quality per archive.
        average: (n,) average over skills of the individual told last; NaN in row 0 and where it was
            stopped early.
    """

    children: np.ndarray
    qd_score: np.ndarray
    coverage: np.ndarray
    best: np.ndarray
    average: np.ndarray


@dataclass(frozen=True)
class RunData:
    """One run, as far as it has come.

    Attributes:
        scores: Split → individual → skill → mean score.
        samples: (split, individual) → skill → sample → score, of the finalists.
        answers: The chosen individual's test measurements.
        questions: Skill → test sample → the beginning of what it asks, where that was recorded.
        archives: K archives; none before the experts were told.
        results: None while the run goes on.
    """

    folder: Path
    manifest: dict[str, Any]
    recipe: Recipe
    individuals: dict[int, Known]
    told: list[int]
    scores: dict[Split, dict[int, dict[str, float]]]
    archives: tuple[Archive, ...]
    history: History | None
    results: Results | None
    finalists: tuple[Finalist, ...]
    samples: dict[tuple[Split, int], dict[str, dict[str, float]]] = field(default_factory=dict)
    answers: list[Measurement] = field(default_factory=list)
    questions: Questions = field(default_factory=dict)

    @property
    def skills(self) -> list[str]:
        """Names of the K skills."""
        return list(self.recipe.skills)

    @property
    def experts(self) -> dict[int, str]:
        """Id → name of the recorded experts."""
        return {n: one.name for n, one in self.individuals.items() if one.role == Role.EXPERT}

    @property
    def stopped(self) -> dict[int, dict[str, int]]:
        """Who was told and had been stopped early → skill → optimisation samples answered."""
        lineages = {number: self.individuals[number].lineage for number in self.told}
        return {n: one["stopped_early"] for n, one in lineages.items() if "stopped_early" in one}

    def average(self, individual: int, split: Split = "optimisation") -> float | None:
        """An individual's average over skills on *split*.

        None where a skill is missing, or samples of one, because it was stopped early.
        """
        if split == "optimisation" and "stopped_early" in self.individuals[individual].lineage:
            return None
        scores = self.scores[split].get(individual, {})
        if not set(self.skills) <= set(scores):
            return None
        return float(vector(scores, self.recipe).mean())


def load_run(folder: Path) -> RunData:
    """Read a run directory; another process may be writing it.

    Raises:
        UserError: No run directory, or a file of it that cannot be understood.
    """
    journal = Journal(folder)
    try:
        manifest = _read_json(folder / "manifest.json")
        recipe = _recipe(manifest, folder / "manifest.json")
        results = _results(folder / "results.json")
        # The order matters while a run goes on: whoever is told is already recorded and scored.
        told = journal.told()
        individuals = {
            one.id: Known(
                one.role, one.name, one.generation, one.lineage, one.seconds, one.generated
            )
            for one in journal.individuals()
        }
        scores = {split: journal.scores(split) for split in SPLITS}
        archives, history = _replay(recipe, individuals, told, scores["optimisation"])
        if results is not None:
            finalists = results.finalists
            unknown = {one.id for one in finalists} - individuals.keys()
            if unknown:
                raise UserError(
                    f"names individuals {sorted(unknown)}, which the journal does not have",
                    where=str(folder / "results.json"),
                    remedy="run the same `cqd-hub evolve` again to write it anew",
                )
        else:
            finalists = _provisional(recipe, individuals, archives)
        samples = {
            (split, one.id): journal.sample_scores(one.id, split)
            for split in SPLITS
            for one in finalists
        }
        answers = journal.measurements(results.chosen, "test") if results else []
    finally:
        journal.close()
    return RunData(
        folder=folder,
        manifest=manifest,
        recipe=recipe,
        individuals=individuals,
        told=told,
        scores=scores,
        archives=archives,
        history=history,
        results=results,
        finalists=finalists,
        samples=samples,
        answers=answers,
        questions=read_questions(folder),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            "is missing", where=str(path), remedy="name a folder made by `cqd-hub evolve`"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from None
    if not isinstance(content, dict):
        raise UserError("must hold a JSON object", where=str(path))
    return content


def _recipe(manifest: dict[str, Any], path: Path) -> Recipe:
    try:
        return Recipe.model_validate(manifest.get("recipe"))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"holds a recipe that this version cannot read: {key}: {first['msg']}",
            where=str(path),
            remedy="use the cqd-hub version that made the run",
        ) from None


def _results(path: Path) -> Results | None:
    if not path.exists():
        return None
    content = _read_json(path)
    try:
        labels: dict[int, list[str]] = {}
        groups: dict[int, Group] = {}
        for one in content["finalists"]:
            # One elite may be several finalists; it is one row.
            labels.setdefault(int(one["id"]), []).append(str(one["label"]))
            groups.setdefault(int(one["id"]), _GROUPS[_GROUPS.index(one["group"])])
        finalists = tuple(
            Finalist(number, ", ".join(names), groups[number]) for number, names in labels.items()
        )
        candidates = tuple(
            Candidate(
                int(one["id"]),
                str(one["label"]),
                float(one["validation"]),
                None if one["optimisation"] is None else float(one["optimisation"]),
            )
            for one in content.get("candidates", [])
        )
        return Results(finalists, int(content["chosen"]), str(content["chosen_by"]), candidates)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"cannot be understood: {error!r}",
            where=str(path),
            remedy="run the same `cqd-hub evolve` again to write it anew",
        ) from None


def _replay(
    recipe: Recipe,
    individuals: dict[int, Known],
    told: list[int],
    scores: dict[int, dict[str, float]],
) -> tuple[tuple[Archive, ...], History | None]:
    if not told:
        return (), None
    experts = sorted(n for n, one in individuals.items() if one.role == Role.EXPERT)
    cycle = make_cycle(recipe, [scores[number] for number in experts])
    rows: dict[int, tuple[list[float], list[float], list[float], float]] = {}
    children = 0
    for number in told:
        child, mean = individuals[number].role == Role.CHILD, np.nan
        children += child
        if "stopped_early" not in individuals[number].lineage:  # else it could enter no archive
            row = vector(scores[number], recipe)
            cycle.tell(number, row)
            mean = float(row.mean()) if child else np.nan
        summaries = [archive.summary for archive in cycle.archives]
        rows[children] = (
            [one.qd_score for one in summaries],
            [one.coverage for one in summaries],
            [one.best or 0.0 for one in summaries],
            mean,
        )
    qd_score, coverage, best, average = zip(*rows.values(), strict=True)
    history = History(
        np.array(list(rows)),
        np.array(qd_score),
        np.array(coverage),
        np.array(best),
        np.array(average),
    )
    return cycle.archives, history


def _provisional(
    recipe: Recipe, individuals: dict[int, Known], archives: tuple[Archive, ...]
) -> tuple[Finalist, ...]:
    """Who stands in the table before a run has finished."""

    def recorded(role: Role, group: Group) -> list[Finalist]:
        numbers = sorted((n for n, one in individuals.items() if one.role == role), key=abs)
        prefix = "expert " if role == Role.EXPERT else ""
        return [Finalist(n, prefix + individuals[n].name, group) for n in numbers]

    honours: dict[int, list[str]] = {}
    children = {
        elite.individual: float(elite.scores.mean())
        for archive in archives
        for elite in archive.elites
        if individuals[elite.individual].role == Role.CHILD
    }
    if children:
        honours[max(children, key=lambda number: (children[number], number))] = ["average"]
    for skill, archive in zip(recipe.skills, archives, strict=False):
        best = archive.best
        if best is not None and best.individual in children:
            honours.setdefault(best.individual, []).append(skill)
    elites = [
        Finalist(number, f"elite {number} (best {', '.join(names)})", "elite")
        for number, names in honours.items()
    ]
    # Baselines and aggregates join when the run has finished: they were not measured before.
    return (*recorded(Role.BASE, "base"), *recorded(Role.EXPERT, "expert"), *elites)
