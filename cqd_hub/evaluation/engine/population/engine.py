"""The second engine: one base, shared factors, and rows of different individuals in one batch."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine._canonical import Canonical
from cqd_hub.evaluation.engine._interface import Candidate, Reply, Request
from cqd_hub.evaluation.engine._queue import Job, fail
from cqd_hub.evaluation.engine._slots import SlotLoop
from cqd_hub.evaluation.engine.population._people import expressible
from cqd_hub.evaluation.engine.population._wrap import unsupported, wrap
from cqd_hub.evaluation.engine.sequential import SequentialEngine
from cqd_hub.genome import Basis, Genome
from cqd_hub.genome.held import Weights

if TYPE_CHECKING:
    from cqd_hub.genome.merge.store import MergeStore


class PopulationEngine(SequentialEngine):
    """Many individuals at once: their scales, tails and cores are gathered row by row.

    In fp32 the answers are those of `SequentialEngine` but for sums in another order; in bfloat16
    both are as far from the truth as each other, but not equal. So `canonical` evaluates on the
    sequential path what is to be reported. An individual that shared factors do not express (noise,
    merges) always goes that way; its replies say so.

    Args:
        basis: As for `SequentialEngine`; so are the other options.
        width: How many individuals a run should have under way.

    Raises:
        UserError: The model's modules cannot have weights by row.
    """

    def __init__(
        self,
        basis: Basis,
        *,
        device: str,
        dtype: torch.dtype,
        batch_tokens: int = 65536,
        merges: MergeStore | None = None,
        weights: Weights = "device",
        width: int = 32,
    ) -> None:
        super().__init__(
            basis,
            device=device,
            dtype=dtype,
            batch_tokens=batch_tokens,
            merges=merges,
            weights=weights,
        )
        if reason := unsupported(self._model, basis):
            raise UserError(
                f"a population cannot share a batch of this model: {reason}",
                where="evaluation.engine",
                remedy="use sequential or auto",
            )
        self.width = width
        self._people = wrap(self._model, basis, dtype=dtype)
        self._loop = SlotLoop(
            self._model,
            self._tokenizer,
            self._ends,
            batch_tokens=batch_tokens,
            assign=self._people.assign,
        )
        self._base = Candidate(-1, Genome.of_base(basis.hash, basis.layout))
        self._sequential_path = self._path
        self._path = self._path.replace("sequential", "population")
        self._alone: set[asyncio.Future[Reply]] = set()

    @property
    def canonical(self) -> Canonical:
        """The same model, one individual after the other."""
        return Canonical(self, partial(self.submit, alone=True), self._sequential_path)

    def submit(
        self, candidate: Candidate, request: Request, *, alone: bool = False
    ) -> asyncio.Future[Reply]:
        """Queue a request; see `Engine.submit`.

        Args:
            candidate: Who is to answer.
            request: What.
            alone: On the sequential path.
        """
        future = super().submit(candidate, request)
        if alone or not expressible(candidate.genome):
            self._alone.add(future)
            future.add_done_callback(self._alone.discard)
        return future

    def _mine(self, job: Job) -> bool:
        return job.future in self._alone

    async def _intake(self) -> list[Job]:
        """All that can share a batch; when nothing can, one individual alone."""
        if not len(self._loop):
            together = any(not (self._mine(job) or job.future.done()) for job in self._waiting)
            self._people.active = False
            if not together:
                return await super()._intake()
            await self._in_thread(self._become, self._base)
            self._people.active = True
        if not self._people.active:
            return await super()._intake()
        return self._meet(self._take(lambda job: not self._mine(job)))

    def _meet(self, jobs: list[Job]) -> list[Job]:
        """Have everybody who asks in the tables, and nobody else."""
        start = time.perf_counter()
        wanted = {id(job.candidate.genome) for job in [*jobs, *self._taken]}
        for key in self._people.present():
            if key not in wanted:
                self._people.remove(key)
        known: list[Job] = []
        for job in jobs:
            key = id(job.candidate.genome)
            try:
                self._people.add(key, job.candidate.genome)
            except Exception as error:
                fail([job], error)
            else:
                known.append(job)
        self.seconds["materialise"] += time.perf_counter() - start
        return known

    def _path_of(self, job: Job) -> str:
        return self._sequential_path if self._mine(job) else ""
