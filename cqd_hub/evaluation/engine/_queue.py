"""What engines share: requests queued on the event loop, answered by a slot loop in a thread."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine._interface import Candidate, Generate, Reply, Request
from cqd_hub.evaluation.engine._rows import Counts, length_of

_Result = TypeVar("_Result")
_Engine = TypeVar("_Engine", bound="QueuedEngine")


class Job(NamedTuple):
    """A request on its way; it belongs to one future."""

    candidate: Candidate
    request: Request
    future: asyncio.Future[Reply]


class Loop(Protocol):
    """What answers jobs; see `SlotLoop`."""

    counts: Counts
    pause: bool

    def __len__(self) -> int: ...

    def add(self, ticket: Job, request: Request, owner: Hashable = None) -> None: ...

    def drop(self, gone: Callable[[Job], bool]) -> None: ...

    def clear(self) -> None: ...

    def advance(self) -> list[tuple[Job, Reply | Exception]]: ...


class QueuedEngine(ABC):
    """Queue, thread and bookkeeping; a subclass says which jobs its loop takes in.

    Args:
        tokenizer: The model's.
        folder: Where the model is, for errors.
        path: See `Engine.path`.
        context: How many tokens the model holds.
        ids: How many token ids it has.
    """

    _loop: Loop

    def __init__(
        self,
        tokenizer: Any,
        *,
        folder: Path,
        path: str,
        context: int,
        ids: int,
    ) -> None:
        self._tokenizer, self._path = tokenizer, path
        self._folder, self._context, self._ids = folder, context, ids
        self._waiting: list[Job] = []
        self._taken: list[Job] = []
        self._arrival: asyncio.Event
        self._worker: asyncio.Task[None] | None = None
        self._running: asyncio.Future[Any] | None = None
        self.seconds = {"materialise": 0.0, "generate": 0.0}

    @property
    def path(self) -> str:
        """How scores are made: engine, dtype and device."""
        return self._path

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        return self._tokenizer

    @property
    def counts(self) -> Counts:
        """Passes, tokens answered, tokens proposed and accepted of drafts."""
        return self._loop.counts

    async def __aenter__(self: _Engine) -> _Engine:
        self._arrival = asyncio.Event()  # belongs to the running loop
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._worker:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        if self._running:
            self._loop.pause = True
            await asyncio.gather(self._running, return_exceptions=True)
        for job in [*self._waiting, *self._taken]:
            job.future.cancel()
        self._waiting, self._taken = [], []
        self._loop.clear()

    def submit(self, candidate: Candidate, request: Request) -> asyncio.Future[Reply]:
        """Queue a request; see `Engine.submit`."""
        if self._worker is None or self._worker.done():
            raise RuntimeError("the engine is not open")
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if error := self.misfit(request):
            future.set_exception(error)
        else:
            self._waiting.append(Job(candidate, request, future))
            self._arrival.set()
            self._loop.pause = True
        return future

    def misfit(self, request: Request) -> UserError | None:
        """Why the model cannot answer a request; see `Engine.misfit`."""
        length = length_of(request)
        if length > self._context:
            return UserError(
                f"prompt and answer take {length} tokens, the model holds {self._context}",
                remedy="shorten the task's prompts, num_fewshot or answers",
            )
        if (largest := max(tokens_in(request))) >= self._ids:
            return UserError(
                f"the tokenizer gives token {largest}, the model has {self._ids}",
                where=str(self._folder),
                remedy="give the tokenizer that belongs to the base",
            )
        return None

    @abstractmethod
    async def _intake(self) -> list[Job]:
        """Take jobs out of what waits, ready for the loop."""

    def _path_of(self, job: Job) -> str:
        """How a job was answered, where `path` does not say it."""
        return ""

    async def _work(self) -> None:
        while True:
            self._waiting = [job for job in self._waiting if not job.future.done()]
            if not self._waiting and not len(self._loop):
                self._arrival.clear()
                await self._arrival.wait()
            await self._settle()
            self._loop.pause = False
            for job in await self._intake():
                self._taken.append(job)
                self._loop.add(job, job.request, id(job.candidate.genome))
            self._loop.drop(lambda job: job.future.done())
            if len(self._loop):
                await self._advance()
            self._taken = [job for job in self._taken if not job.future.done()]

    async def _advance(self) -> None:
        start = time.perf_counter()
        try:
            finished = await self._in_thread(self._loop.advance)
        except Exception as error:
            self._loop.clear()
            fail(self._taken, error)
            return
        self.seconds["generate"] += time.perf_counter() - start
        for job, outcome in finished:
            if isinstance(outcome, Exception):
                fail([job], outcome)
            elif not job.future.done():
                job.future.set_result(replace(outcome, path=self._path_of(job)))

    async def _settle(self) -> None:
        """Let callers that are about to submit do so, so that batches are full and repeatable."""
        size = -1
        while size != len(self._waiting):
            size = len(self._waiting)
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _take(self, wanted: Callable[[Job], bool]) -> list[Job]:
        """Remove from what waits, and return, the *wanted* jobs that somebody still waits for."""
        waiting = [job for job in self._waiting if not job.future.done()]
        self._waiting = [job for job in waiting if not wanted(job)]
        return [job for job in waiting if wanted(job)]

    async def _in_thread(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        """Work beside the event loop; what has begun is finished even when nobody waits for it."""
        running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
        self._running = running
        return await asyncio.shield(running)


def fail(jobs: list[Job], error: Exception) -> None:
    """Give an error to whoever still waits."""
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(error)


def tokens_in(request: Request) -> tuple[int, ...]:
    """The token ids that a request gives the model."""
    if isinstance(request, Generate):
        return request.prompt
    return request.prompt + request.continuation
