"""The environment and its episodes."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.episodes import (
    CONTEXT_FULL,
    Environment,
    Episode,
    Message,
    Observation,
    Resources,
    Sample,
    Tool,
    Turn,
    Verdict,
)

from .client import Refused, Server, checked_url
from .fc import Worker
from .reading import CANCELLED, TASK_ERROR, Index, Protocol, Told
from .v02 import Controller

T = TypeVar("T")
_PROTOCOLS: dict[str, type[Protocol]] = {"v0.2": Controller, "fc": Worker}
_SPARE = 4  # connections beside one per episode: cancelling, judging
_DATABASE_PAUSE = 0.5
_FIRST = 10.0  # seconds of patience before anything is open, where no note can be shown
_NAME = re.compile(r"[\w.-]+", re.ASCII)
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TaskServer(Environment):
    """A task of a running AgentBench server, played on it and judged by it.

    Prompts, tools, rounds and judge are the server's; what it executes, it confines, or does not.
    Asks the server for the task's samples, and for its tools, when it is made.

    Raises:
        UserError: No such task or sample.
        RunError: The server is not there, or does not speak the protocol.
    """

    class Options(Environment.Options):
        """What may be chosen."""

        url: str = Field(
            default="http://127.0.0.1:5000/api",
            description="of v0.2's controller, or of the function-calling worker",
        )
        protocol: Literal["v0.2", "fc"] = "v0.2"
        name: str = Field(default="", description="the task: os-dev, dbbench-std, …")
        indices: list[Index] | dict[str, list[Index]] | None = Field(
            default=None, description="the samples, or those of each split; the server's if unsaid"
        )
        rounds: Annotated[int, Field(ge=1)] = Field(
            default=32, description="replies at most; the server has a limit of its own"
        )
        live: Annotated[int, Field(ge=1)] = Field(
            default=5, description="samples played at once; no more than its workers take"
        )
        pause: Seconds | None = Field(
            default=None,
            description="seconds between a sample's start and the first reply; 0.5 for v0.2's "
            "databases, which may not be filled yet, else 0",
        )
        timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
            default=300, description="seconds for one answer"
        )
        patience: Seconds = Field(
            default=600, description="seconds to wait for a free worker, or for the server"
        )
        errors: Literal["stop", "fail"] = Field(
            default="stop",
            description="a task's own error: stop the run if it comes twice, or fail the sample",
        )

    options: Options

    def __init__(self, options: Options, folder: Path) -> None:
        super().__init__(options, folder)
        self._url = checked_url(options.url)
        if not _NAME.fullmatch(options.name):
            raise UserError(
                f"{options.name!r} is no name of a task" if options.name else "no task",
                where="options.name",
                remedy="write the name its worker was started with, such as dbbench-std",
            )
        self.rounds, self.live = options.rounds, options.live
        self.kind = f"agentbench-server/{options.protocol}/{options.name}"
        self._pause = options.pause
        if self._pause is None:
            databases = options.protocol == "v0.2" and options.name.startswith("db")
            self._pause = _DATABASE_PAUSE if databases else 0.0
        self._protocol: Protocol | None = None
        self._sessions: set[int] = set()
        self._late: set[asyncio.Task[None]] = set()
        self._splits, self.tools = _aside(self._ask_at_first)

    async def _ask_at_first(self) -> tuple[dict[str, list[Index]], tuple[Tool, ...]]:
        """The samples of each split, and the tools."""
        async with self._server(min(self.options.patience, _FIRST)) as server:
            protocol = _PROTOCOLS[self.options.protocol](server, self.options.name)
            try:
                known = await protocol.indices()
            except Refused as error:
                raise UserError(
                    f"the server has no samples of {self.options.name}: {error.said}",
                    where="options.name",
                    remedy=f"see {self._url}/list_workers for what it has, and options.url",
                ) from None
            splits = self._chosen(known)
            if self.options.protocol == "v0.2":
                return splits, ()
            session, told = await protocol.start(next(i for s in splits.values() for i in s))
            await protocol.cancel(session)
            return splits, told.tools

    def _chosen(self, known: Sequence[Index]) -> dict[str, list[Index]]:
        given = self.options.indices
        splits = given if isinstance(given, dict) else {"all": known if given is None else given}
        strangers = [one for split in splits.values() for one in split if one not in known]
        if strangers:
            raise UserError(
                f"{self.options.name} has no sample {strangers[0]!r}",
                where="options.indices",
                remedy=f"it has {len(known)}, such as {known[0]!r}" if known else "it has none",
            )
        if not any(splits.values()):
            raise UserError("no samples", where="options.indices", remedy="name some, or none")
        return {name: list(split) for name, split in splits.items()}

    def _server(self, patience: float, note: Callable[[str], None] = lambda line: None) -> Server:
        return Server(
            self._url,
            timeout=self.options.timeout,
            patience=patience,
            connections=self.live + _SPARE,
            note=note,
        )

    def samples(self) -> Mapping[str, Sequence[Sample]]:
        """Named and told apart by their indices: what a sample asks is known once it is begun."""
        return {
            split: [
                Sample(str(index), f"{self.options.name} {index}", {"index": index})
                for index in indices
            ]
            for split, indices in self._splits.items()
        }

    async def open(self, resources: Resources) -> None:
        server = self._server(self.options.patience, resources.note)
        self._protocol = _PROTOCOLS[self.options.protocol](server, self.options.name)
        self.guarantees = (
            f"played and judged by the server at {self._url}: what it executes is confined as "
            "that server does it, not by us"
        )
        resources.note(self.guarantees)

    async def close(self) -> None:
        protocol, self._protocol = self._protocol, None
        if protocol is None:
            return
        for task in [*self._late]:
            with suppress(RunError, UserError):
                await task
        await asyncio.gather(*(protocol.cancel(session) for session in [*self._sessions]))
        await protocol.server.__aexit__()

    async def begin(self, sample: Sample) -> Episode:
        protocol = self._protocol
        if protocol is None:
            raise RuntimeError("the environment is not open")
        index = sample.document["index"]
        starting = asyncio.create_task(protocol.start(index))
        try:
            session, told = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The server may have begun it, or be about to: its place is given back later.
            late = asyncio.create_task(self._give_back(protocol, starting))
            self._late.add(late)
            late.add_done_callback(self._late.discard)
            raise
        self._sessions.add(session)
        if told.tools != self.tools and not told.over:
            await self.give_back(session)
            raise UserError(
                f"sample {index} has other tools than the first one",
                where="options.indices",
                remedy="name samples that have the same",
            )
        return _Sample(self, protocol, session, index, told)

    async def _give_back(
        self, protocol: Protocol, starting: asyncio.Task[tuple[int, Told]]
    ) -> None:
        with suppress(RunError):
            session, _ = await starting
            await protocol.cancel(session)

    async def give_back(self, session: int) -> None:
        """Cancel a session, unless it is over."""
        if session in self._sessions and self._protocol is not None:
            await self._protocol.cancel(session)
            self.forget(session)

    def forget(self, session: int) -> None:
        """Know that a session is over."""
        self._sessions.discard(session)

    @property
    def pause(self) -> float:
        """Seconds from a sample's start to the first reply."""
        return self._pause or 0.0


class _Sample(Episode):
    def __init__(
        self, environment: TaskServer, protocol: Protocol, session: int, index: Index, told: Told
    ) -> None:
        self._environment, self._protocol = environment, protocol
        self._session, self._index, self._told = session, index, told
        self._ready = asyncio.get_running_loop().time() + environment.pause
        # A sample that could not be set up is over before it began: any reply ends it.
        self.opening = told.messages or (Message("user", f"({told.status})"),)
        if told.over:
            environment.forget(session)

    async def step(self, reply: Message) -> Turn:
        if self._told.over:
            return await self._judge(self._told)
        await asyncio.sleep(self._ready - asyncio.get_running_loop().time())
        try:
            told = await self._protocol.interact(self._session, reply)
        except Refused as error:
            if error.status == 501 and self._environment.options.errors == "fail":
                return Verdict(0.0, TASK_ERROR, error.said)
            raise
        if not told.over:
            return Observation(told.messages)
        return await self._judge(told)

    async def _judge(self, told: Told) -> Verdict:
        verdict = await self._verdict(told)
        self._environment.forget(self._session)  # what is not understood is cancelled all the same
        return verdict

    async def _verdict(self, told: Told) -> Verdict:
        if told.status == CANCELLED:
            raise RunError(
                f"the server cancelled sample {self._index}",
                remedy="it ends what is idle for 240 s: see options.live",
            )
        if told.status == TASK_ERROR:
            if self._environment.options.errors == "fail":
                return Verdict(0.0, TASK_ERROR)
            raise RunError(
                f"the task failed at sample {self._index}",
                remedy="see what its worker prints; leave the sample out with options.indices, or "
                "write errors: fail",
            )
        return await self._protocol.judge(self._index, told)

    async def end(self, status: str) -> Verdict:
        if self._told.over:
            return await self._judge(self._told)
        if status == CONTEXT_FULL:
            told = await self._protocol.context_full(self._session)
            if told is not None and told.over:
                return await self._judge(told)
        return Verdict(0.0, status)

    async def close(self) -> None:
        await self._environment.give_back(self._session)


def _aside(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of a coroutine, whether or not an event loop runs here."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(asyncio.run(work()))
        except BaseException as error:  # handed over to the caller's thread
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
