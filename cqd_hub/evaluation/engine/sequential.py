"""The first engine: each individual materialised in place in turn, its requests batched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine._decoding import generate, log_likelihoods
from cqd_hub.evaluation.engine._interface import (
    Candidate,
    Generate,
    LogLikelihood,
    Reply,
    Request,
)
from cqd_hub.genome import Basis, Materialiser

_Request = TypeVar("_Request", Generate, LogLikelihood)


class _Job(NamedTuple):
    candidate: Candidate
    request: Request
    future: asyncio.Future[Reply]


class SequentialEngine:
    """One resident model; whichever individual has requests is written into it.

    Batches are formed from all requests that wait when the engine turns to them, longest first, so
    a child whose requests are submitted together always meets the same batches.

    Args:
        basis: What genomes are made of; its base is the resident model.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        dtype: Of the resident model.
        batch_tokens: Rows × (prompt + answer) of a batch, at most.
    """

    def __init__(
        self, basis: Basis, *, device: str, dtype: torch.dtype, batch_tokens: int = 65536
    ) -> None:
        folder = basis.base.checkpoint.path
        self._model = load_model(folder, device=device, dtype=dtype)
        self._tokenizer = load_tokenizer(folder)
        self._parameters = dict(self._model.named_parameters())
        missing = [name for name in basis.base.names if name not in self._parameters]
        if missing:
            raise UserError(
                f"transformers keeps {missing[0]} under another name",
                where=str(folder),
                remedy="this architecture is not supported yet",
            )
        self._materialiser = Materialiser(basis, device=device)
        self._batch_tokens = batch_tokens
        self._context = getattr(self._model.config, "max_position_embeddings", None) or 1 << 30
        self._end = _end_tokens(self._model, self._tokenizer)
        self._resident: Candidate | None = None
        self._queue: asyncio.Queue[_Job] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None
        self.seconds = {"materialise": 0.0, "generate": 0.0}
        self._path = f"sequential/{str(dtype).removeprefix('torch.')}/{torch.device(device).type}"

    @property
    def path(self) -> str:
        """How scores are made: engine, dtype and device."""
        return self._path

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        return self._tokenizer

    async def __aenter__(self) -> SequentialEngine:
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._worker:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)

    def submit(self, candidate: Candidate, request: Request) -> asyncio.Future[Reply]:
        """Queue a request; see `Engine.submit`."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if (length := _length(request)) > self._context:
            future.set_exception(
                UserError(
                    f"prompt and answer take {length} tokens, the model holds {self._context}",
                    remedy="shorten the task's prompts, num_fewshot or answers",
                )
            )
        else:
            self._queue.put_nowait(_Job(candidate, request, future))
        return future

    async def _work(self) -> None:
        waiting: list[_Job] = []
        while True:
            if not waiting:
                waiting.append(await self._queue.get())
            await self._settle()
            while not self._queue.empty():
                waiting.append(self._queue.get_nowait())
            turn = self._next_individual(waiting)
            mine = [job for job in waiting if job.candidate.id == turn]
            waiting = [job for job in waiting if job.candidate.id != turn]
            await self._answer(mine)

    async def _settle(self) -> None:
        """Let callers that are about to submit do so, so that batches are full and repeatable."""
        size = -1
        while size != self._queue.qsize():
            size = self._queue.qsize()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _next_individual(self, waiting: Sequence[_Job]) -> int:
        if self._resident and any(job.candidate.id == self._resident.id for job in waiting):
            return self._resident.id
        return waiting[0].candidate.id

    async def _answer(self, jobs: list[_Job]) -> None:
        try:
            await asyncio.to_thread(self._become, jobs[0].candidate)
            for batch in self._batches(jobs):
                replies = await asyncio.to_thread(self._run, [job.request for job in batch])
                for job, reply in zip(batch, replies, strict=True):
                    if not job.future.done():
                        job.future.set_result(reply)
        except Exception as error:
            for job in jobs:
                if not job.future.done():
                    job.future.set_exception(error)

    def _become(self, candidate: Candidate) -> None:
        if self._resident is not None and self._resident.genome is candidate.genome:
            return
        start = time.perf_counter()
        self._resident = None
        self._materialiser.write(candidate.genome, self._parameters)
        self._resident = candidate
        self.seconds["materialise"] += time.perf_counter() - start

    def _batches(self, jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
        """Split by kind and length; the order within equal lengths is that of submission."""
        for kind in (Generate, LogLikelihood):
            batch: list[_Job] = []
            for job in sorted(
                (job for job in jobs if isinstance(job.request, kind)),
                key=lambda job: -_length(job.request),
            ):
                longest = _length(batch[0].request) if batch else 0
                if batch and longest * (len(batch) + 1) > self._batch_tokens:
                    yield batch
                    batch = []
                batch.append(job)
            if batch:
                yield batch

    def _run(self, requests: list[Request]) -> list[Reply]:
        start = time.perf_counter()
        if isinstance(requests[0], Generate):
            replies = generate(self._model, self._tokenizer, _all(requests, Generate), self._end)
        else:
            replies = log_likelihoods(self._model, self._tokenizer, _all(requests, LogLikelihood))
        self.seconds["generate"] += time.perf_counter() - start
        return replies


def load_model(folder: Path, *, device: str, dtype: torch.dtype) -> Any:
    """Load a causal LM for inference from a local folder, safetensors only, no remote code.

    Raises:
        UserError: transformers cannot load it.
    """
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"transformers cannot load it: {_first_line(error)}", where=str(folder)
        ) from None
    model.requires_grad_(False).eval()
    return model.to(torch.device(device))  # type: ignore[arg-type]


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a local model folder.

    Raises:
        UserError: There is none that transformers can load.
    """
    try:
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, padding_side="left"
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"has no usable tokenizer: {_first_line(error)}",
            where=str(folder),
            remedy="copy tokenizer.json and tokenizer_config.json beside the weights",
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _all(requests: list[Request], kind: type[_Request]) -> list[_Request]:
    return [request for request in requests if isinstance(request, kind)]


def _length(request: Request) -> int:
    if isinstance(request, Generate):
        return len(request.prompt) + request.max_new_tokens
    return len(request.prompt) + len(request.continuation)


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured, tokenizer.eos_token_id]
    return frozenset(token for token in ids if token is not None)
