"""The first engine: each individual materialised in place in turn, its requests batched."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from cqd_hub.evaluation.engine._interface import Candidate, Engine
from cqd_hub.evaluation.engine._queue import Job, QueuedEngine, fail
from cqd_hub.evaluation.engine._slots import SlotLoop
from cqd_hub.evaluation.engine.loading import end_tokens, load_model, load_tokenizer, slots_in
from cqd_hub.genome import Basis, Materialiser
from cqd_hub.genome.held import Weights

if TYPE_CHECKING:
    from cqd_hub.genome.merge.store import MergeStore


class SequentialEngine(QueuedEngine):
    """One resident model; whichever individual has requests is written into it.

    What an individual asks for together is batched together, whoever else waits, so that a child
    always meets the same batches.

    Args:
        basis: What genomes are made of; its base is the resident model.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        dtype: Of the resident model.
        batch_tokens: Rows × (prompt + answer) of a batch, at most.
        merges: Where the merges are that genomes weigh.
        weights: Where those are kept that individuals are made of, see `Materialiser`.

    Attributes:
        width: How many individuals a run should have under way: one is generated for while another
            is executed.
    """

    width = 2

    def __init__(
        self,
        basis: Basis,
        *,
        device: str,
        dtype: torch.dtype,
        batch_tokens: int = 65536,
        merges: MergeStore | None = None,
        weights: Weights = "device",
    ) -> None:
        folder = basis.base.checkpoint.path
        model = load_model(folder, device=device, dtype=dtype)
        if basis.base.vocabulary is not None:
            model.resize_token_embeddings(basis.base.vocabulary.rows, mean_resizing=False)
        tokenizer = load_tokenizer(basis.base.tokenizer)
        self._model, self._ends = model, end_tokens(model, tokenizer)
        self._batch_tokens = batch_tokens
        self._parameters = slots_in(model, basis.base)
        self._materialiser = Materialiser(basis, device=device, weights=weights, merges=merges)
        self._resident: Candidate | None = None
        super().__init__(
            tokenizer,
            folder=folder,
            path=f"sequential/{str(dtype).removeprefix('torch.')}/{torch.device(device).type}",
            context=getattr(model.config, "max_position_embeddings", None) or 1 << 30,
            ids=model.get_input_embeddings().num_embeddings,
        )
        self._loop = SlotLoop(model, tokenizer, self._ends, batch_tokens=batch_tokens)

    @property
    def canonical(self) -> Engine:
        """The engine whose scores are reported: this one."""
        return self

    def _mine(self, job: Job) -> bool:
        """Whether a job is to be answered one individual at a time."""
        return True

    async def _intake(self) -> list[Job]:
        """All that waits for the resident individual, else for the first in the queue."""
        resident = self._resident
        if resident is not None:
            jobs = self._take(
                lambda job: job.candidate.genome is resident.genome and self._mine(job)
            )
            if jobs or len(self._loop):
                return jobs
        first = next(
            (j.candidate for j in self._waiting if self._mine(j) and not j.future.done()), None
        )
        if first is None:
            return []
        jobs = self._take(lambda job: job.candidate.genome is first.genome and self._mine(job))
        try:
            await self._in_thread(self._become, first)
        except Exception as error:
            fail(jobs, error)
            return []
        return jobs

    def _become(self, candidate: Candidate) -> None:
        if self._resident is not None and self._resident.genome is candidate.genome:
            return
        start = time.perf_counter()
        self._resident = None
        self._materialiser.write(candidate.genome, self._parameters)
        self._resident = candidate
        self.seconds["materialise"] += time.perf_counter() - start
