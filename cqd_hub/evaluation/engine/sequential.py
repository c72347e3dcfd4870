"""The first engine: each individual materialised in place in turn, its requests batched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.engine._decoding import generate, log_likelihoods
from cqd_hub.evaluation.engine._interface import (
    Candidate,
    Generate,
    LogLikelihood,
    Reply,
    Request,
)
from cqd_hub.genome import Basis, Materialiser
from cqd_hub.genome.models.architecture import Architecture
from cqd_hub.genome.models.experts import Base

if TYPE_CHECKING:
    from cqd_hub.genome.merge.store import MergeStore

_Request = TypeVar("_Request", Generate, LogLikelihood)
_Result = TypeVar("_Result")


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
        merges: Where the merges are that genomes weigh.
    """

    def __init__(
        self,
        basis: Basis,
        *,
        device: str,
        dtype: torch.dtype,
        batch_tokens: int = 65536,
        merges: MergeStore | None = None,
    ) -> None:
        folder = basis.base.checkpoint.path
        self._model = load_model(folder, device=device, dtype=dtype)
        if basis.base.vocabulary is not None:
            self._model.resize_token_embeddings(basis.base.vocabulary.rows, mean_resizing=False)
        self._tokenizer = load_tokenizer(basis.base.tokenizer)
        self._folder, self._rows = folder, self._model.get_input_embeddings().num_embeddings
        self._parameters = _slots_in(self._model, basis.base)
        self._materialiser = Materialiser(basis, device=device, merges=merges)
        self._batch_tokens = batch_tokens
        self._context = getattr(self._model.config, "max_position_embeddings", None) or 1 << 30
        self._end = _end_tokens(self._model, self._tokenizer)
        self._resident: Candidate | None = None
        self._waiting: list[_Job] = []
        self._arrival: asyncio.Event
        self._worker: asyncio.Task[None] | None = None
        self._running: asyncio.Future[Any] | None = None
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
        self._arrival = asyncio.Event()  # belongs to the running loop
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._worker:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        if self._running:
            await asyncio.gather(self._running, return_exceptions=True)
        for job in self._waiting:
            job.future.cancel()
        self._waiting = []

    def submit(self, candidate: Candidate, request: Request) -> asyncio.Future[Reply]:
        """Queue a request; see `Engine.submit`."""
        if self._worker is None or self._worker.done():
            raise RuntimeError("the engine is not open")
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if error := self.misfit(request):
            future.set_exception(error)
        else:
            self._waiting.append(_Job(candidate, request, future))
            self._arrival.set()
        return future

    def misfit(self, request: Request) -> UserError | None:
        """Why the model cannot answer a request; see `Engine.misfit`."""
        if (length := _length(request)) > self._context:
            return UserError(
                f"prompt and answer take {length} tokens, the model holds {self._context}",
                remedy="shorten the task's prompts, num_fewshot or answers",
            )
        if (largest := max(_ids(request))) >= self._rows:
            return UserError(
                f"the tokenizer gives token {largest}, the model has {self._rows}",
                where=str(self._folder),
                remedy="give the tokenizer that belongs to the base",
            )
        return None

    async def _work(self) -> None:
        while True:
            self._waiting = [job for job in self._waiting if not job.future.done()]
            if not self._waiting:
                self._arrival.clear()
                await self._arrival.wait()
            await self._settle()
            await self._answer(self._next_jobs())

    async def _settle(self) -> None:
        """Let callers that are about to submit do so, so that batches are full and repeatable."""
        size = -1
        while size != len(self._waiting):
            size = len(self._waiting)
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _next_jobs(self) -> list[_Job]:
        """All that waits for the resident individual, else for the first in the queue."""
        of: dict[int, list[_Job]] = {}
        for job in self._waiting:
            if not job.future.done():
                of.setdefault(id(job.candidate.genome), []).append(job)
        resident = self._resident
        if resident is not None and id(resident.genome) in of:
            return of[id(resident.genome)]
        return next(iter(of.values()), [])

    async def _answer(self, jobs: list[_Job]) -> None:
        try:
            if jobs:
                await self._in_thread(self._become, jobs[0].candidate)
            for batch in self._batches(jobs):
                if all(job.future.done() for job in batch):  # withdrawn
                    continue
                replies = await self._in_thread(self._run, [job.request for job in batch])
                for job, reply in zip(batch, replies, strict=True):
                    if not job.future.done():
                        job.future.set_result(reply)
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                error = RunError(
                    "the device's memory does not hold a batch",
                    remedy="set a smaller evaluation.batch_tokens",
                )
            for job in jobs:
                if not job.future.done():
                    job.future.set_exception(error)

    async def _in_thread(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        """Work beside the event loop; what has begun is finished even when nobody waits for it."""
        running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
        self._running = running
        return await asyncio.shield(running)

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
            replies = log_likelihoods(self._model, _all(requests, LogLikelihood))
        self.seconds["generate"] += time.perf_counter() - start
        return replies


def _slots_in(model: Any, base: Base) -> dict[str, torch.Tensor]:
    """Slot name → its data within the model, as a view to write to.

    Raises:
        UserError: What transformers would fill in at random, or leave unused.
    """
    architecture = Architecture(model)
    places = architecture.places(slot.tensor for slot in base.slots)
    covered = dict.fromkeys(architecture.parameters, 0)
    found = {}
    for slot in base.slots:
        place = places.get(slot.tensor)
        if place is None:
            problem = f"transformers does not use {slot.tensor}"
            break
        data = place.view(architecture.parameters[place.parameter].data)
        found[slot.name] = (data if slot.index is None else data[slot.index]).view(slot.shape)
        covered[place.parameter] += found[slot.name].numel()
    else:
        short = [n for n, t in architecture.parameters.items() if covered[n] != t.numel()]
        if not short:
            return found
        problem = f"transformers also needs {short[0]}"
    raise UserError(
        problem,
        where=str(base.checkpoint.path),
        remedy="save the model again with this transformers, or choose another base",
    )


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
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
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


def _ids(request: Request) -> tuple[int, ...]:
    if isinstance(request, Generate):
        return request.prompt
    return request.prompt + request.continuation


def _length(request: Request) -> int:
    answer = request.max_new_tokens if isinstance(request, Generate) else 0
    return len(_ids(request)) + answer


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured, tokenizer.eos_token_id]
    return frozenset(token for token in ids if token is not None)
