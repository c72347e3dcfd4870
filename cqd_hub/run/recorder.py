"""From a genome to rows of the journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cqd_hub.evaluation.engine import Candidate
from cqd_hub.genome import Genome
from cqd_hub.run.executors import Executor, Job
from cqd_hub.run.journal import Individual, Journal, Role
from cqd_hub.run.racing import Standing

_REMEMBERED = 64  # genomes kept in memory


class Recorder:
    """Has individuals evaluated on the optimisation samples and records them with what they scored.

    Attributes:
        reused: Share of the answers whose verdict was known.
    """

    def __init__(self, executor: Executor, journal: Journal) -> None:
        self._executor, self._journal = executor, journal
        self._genomes: dict[int, Genome] = {}
        self._executed = self._reused = 0

    @property
    def reused(self) -> float:
        answers = self._executed + self._reused
        return self._reused / answers if answers else 0.0

    async def add(
        self,
        number: int,
        role: Role,
        name: str,
        genome: Genome,
        *,
        generation: int | None = None,
        lineage: dict[str, Any] | None = None,
        parents: Sequence[int] = (),
        skills: Sequence[str] = (),
        standing: Standing | None = None,
    ) -> bool:
        """Evaluate one individual and write it down, all or nothing.

        Args:
            skills: In the order in which to take them, where it must beat a *standing*.

        Returns:
            Whether it was asked everything: else it can enter no archive, and its lineage says so.
        """
        candidate = Candidate(number, genome)
        done = await self._executor.evaluate(
            Job(candidate, "optimisation", tuple(skills), tuple(parents), standing)
        )
        lineage = dict(lineage or {})
        if done.stopped is not None:
            lineage["stopped_early"] = done.stopped
        self._executed += done.executed
        self._reused += done.reused
        self._journal.add(
            Individual(
                id=number,
                role=role,
                name=name,
                genome=genome.to_bytes(),
                genome_hash=genome.hash,
                generation=generation,
                lineage=lineage,
                seconds=done.seconds,
                generated=done.generated,
            ),
            done.measurements,
        )
        return done.stopped is None

    def genome(self, number: int) -> Genome:
        """A recorded individual's."""
        if number not in self._genomes:
            self._genomes[number] = Genome.from_bytes(self._journal.individual(number).genome)
            while len(self._genomes) > _REMEMBERED:
                del self._genomes[next(iter(self._genomes))]
        return self._genomes[number]
