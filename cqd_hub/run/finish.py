"""After the search: candidates chosen on validation samples, finalists reported on test samples.

Archives keep lucky maxima, so nothing is chosen or reported on the samples the search saw.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cqd_hub.evaluation.engine import Candidate
from cqd_hub.files import write_atomic
from cqd_hub.genome import Genome, combine
from cqd_hub.recipe import Split
from cqd_hub.run.executors import Executor, Job
from cqd_hub.run.journal import Individual, Journal, Role
from cqd_hub.run.lineup import Lineup, shares_kept
from cqd_hub.run.merges import present
from cqd_hub.run.progress import Observer, Stopped
from cqd_hub.run.questions import write_questions
from cqd_hub.search import Cycle, aggregation_weights

_TOP = 8  # elites by average that are scored again on validation
_SCALES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)


@dataclass(frozen=True)
class _Candidate:
    id: int
    label: str
    group: str


class Finish:
    """Scores candidates on validation and finalists on test, and writes ``results.json``.

    Finalists are the base, the experts, the equal merge, the best scaling of the summed task
    vectors, the best elite of each archive, the best elite by average, and the aggregate (§3.4 of
    the paper). The best scaling and the best elite by average are chosen on validation; so is the
    run's answer, between that elite and the aggregate.
    """

    def __init__(
        self,
        lineup: Lineup,
        executor: Executor,
        journal: Journal,
        cycle: Cycle,
        folder: Path,
        observer: Observer,
        stop: asyncio.Event,
    ) -> None:
        self._lineup, self._executor = lineup, executor
        self._journal, self._cycle = journal, cycle
        self._folder, self._observer, self._stop = folder, observer, stop
        self._outsiders = journal.outsiders()

    async def go(self) -> None:
        """Do what has not been done yet; raises `Stopped` if asked to."""
        self._observer.phase("validation")
        merge, scalings = self._equal_merge(), self._scalings()
        best = self._best_per_skill()
        elites = self._top_elites()
        aggregate = self._aggregate()
        candidates = [merge, *scalings, *elites, aggregate]
        averages = await self._averages([one.id for one in candidates], "validation")

        def leader(group: Sequence[_Candidate]) -> _Candidate:
            return max(group, key=lambda candidate: averages[candidate.id])  # the first of equals

        elite, scaling = leader(elites), leader(scalings)
        chosen = leader([elite, aggregate])
        finalists = [*self._ancestors(), merge, scaling, *best]
        finalists += [replace(elite, label="best elite"), aggregate]
        self._observer.phase("test")
        write_questions(self._folder, self._lineup.skills)
        await self._averages([one.id for one in finalists], "test")
        selection = self._journal.scores("optimisation")
        results = {
            "finalists": [vars(finalist) for finalist in finalists],
            "told": len(self._journal.told()),
            "chosen": chosen.id,
            "chosen_by": "validation average, best elite or aggregate",
            "candidates": [
                {
                    "id": candidate.id,
                    "label": candidate.label,
                    "validation": averages[candidate.id],
                    "optimisation": _mean(selection[candidate.id].values())
                    if candidate.id in selection
                    else None,
                }
                for candidate in candidates
            ],
        }
        write_atomic(self._folder / "results.json", json.dumps(results, indent=2) + "\n")

    # Who takes part.

    def _ancestors(self) -> list[_Candidate]:
        base, *_ = self._journal.individuals(Role.BASE)
        experts = self._journal.individuals(Role.EXPERT)
        kept, rank = shares_kept(self._lineup.basis), self._lineup.recipe.genome.rank
        return [
            _Candidate(base.id, "base", "base"),
            *(
                _Candidate(
                    expert.id,
                    f"expert {expert.name}" + (f", rank {rank}" if share < 0.999 else ""),
                    "expert",
                )
                for expert, share in zip(experts, kept, strict=True)
            ),
        ]

    def _equal_merge(self) -> _Candidate:
        count = len(self._lineup.recipe.experts)
        return self._scaled(1 / count, "equal merge")

    def _scalings(self) -> list[_Candidate]:
        return [self._scaled(scale, f"all experts × {scale:g}") for scale in _SCALES]

    def _scaled(self, scale: float, label: str) -> _Candidate:
        basis = self._lineup.basis
        experts = [
            Genome.of_expert(basis.hash, basis.layout, number)
            for number in range(len(basis.experts))
        ]
        genome = combine(experts, np.full(len(experts), scale), basis.layout)
        return _Candidate(self._outsider(label, Role.BASELINE, genome), label, "baseline")

    def _best_per_skill(self) -> list[_Candidate]:
        result = []
        for skill, archive in zip(self._lineup.recipe.skills, self._cycle.archives, strict=True):
            assert archive.best is not None
            result.append(_Candidate(archive.best.individual, f"best elite for {skill}", "elite"))
        return result

    def _top_elites(self) -> list[_Candidate]:
        found: dict[int, float] = {}
        for archive in self._cycle.archives:
            for elite in archive.elites:
                found[elite.individual] = float(elite.scores.mean())
        top = sorted(found, key=lambda number: (-found[number], number))[:_TOP]
        return [_Candidate(number, "elite", "elite") for number in top]

    def _aggregate(self) -> _Candidate:
        """θ_base + Σ_k β_k τ_k over the archives' best elites, β = softmax of their scores."""
        settings, layout = self._lineup.recipe.aggregation, self._lineup.basis.layout
        best = [archive.best for archive in self._cycle.archives]
        scores = np.array([elite.scores[k] for k, elite in enumerate(best) if elite])
        weights = aggregation_weights(
            scores, unit=float(settings.unit), temperature=settings.temperature
        )
        genomes = [self._genome(elite.individual) for elite in best if elite]
        genome = combine(genomes, weights, layout)
        lineage = {
            "parents": [elite.individual for elite in best if elite],
            "shares": weights.tolist(),
        }
        number = self._outsider("aggregate", Role.AGGREGATE, genome, lineage)
        return _Candidate(number, "aggregate", "aggregate")

    def _outsider(
        self, name: str, role: Role, genome: Genome, lineage: dict[str, Any] | None = None
    ) -> int:
        """The id of an individual that no archive sees, recorded if it is new."""
        key = (name, genome.hash)
        if key not in self._outsiders:
            number = min(self._outsiders.values(), default=0) - 1
            self._journal.add(
                Individual(
                    id=number,
                    role=role,
                    name=name,
                    genome=genome.to_bytes(),
                    genome_hash=genome.hash,
                    lineage=lineage or {},
                ),
                (),
            )
            self._outsiders[key] = number
        return self._outsiders[key]

    # Their scores.

    async def _averages(self, numbers: Iterable[int], split: Split) -> dict[int, float]:
        """Evaluate what has not been evaluated; each one's average over skills."""
        everyone = list(dict.fromkeys(numbers))
        left = {number: missing for number in everyone if (missing := self._missing(number, split))}
        done = len(everyone) - len(left)
        if left:
            self._observer.measured(done, len(everyone))
        for number, skills in left.items():
            await self._measure(number, split, skills)
            done += 1
            self._observer.measured(done, len(everyone))
        scores = {number: self._journal.scores_of(number, split) for number in everyone}
        names = list(self._lineup.recipe.skills)
        return {number: _mean(known[skill] for skill in names) for number, known in scores.items()}

    def _missing(self, number: int, split: Split) -> tuple[str, ...]:
        known = self._journal.scores_of(number, split)
        return tuple(skill for skill in self._lineup.recipe.skills if skill not in known)

    async def _measure(self, number: int, split: Split, skills: tuple[str, ...]) -> None:
        if self._stop.is_set():
            raise Stopped
        candidate = Candidate(number, self._genome(number))
        async with present(self._lineup.merges, candidate.genome):
            done = await self._executor.evaluate(Job(candidate, split, skills))
        self._journal.measure(number, done.measurements)

    def _genome(self, number: int) -> Genome:
        return Genome.from_bytes(self._journal.individual(number).genome)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
