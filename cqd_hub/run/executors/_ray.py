"""Workers on the machines of a Ray cluster: actors with a resident model each.

Steady state: an actor that is free takes the next job, whatever the others do. An actor or node
that dies costs its jobs in flight, which go to others; machines may join and leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

from cqd_hub.errors import CqdHubError, RunError, UserError
from cqd_hub.evaluation.sandbox import printable
from cqd_hub.genome import Basis
from cqd_hub.run.executors._basis import basis_files, place_basis
from cqd_hub.run.executors._handing import HandingOut, WorkerGone
from cqd_hub.run.executors._messages import encode_error, refuse_error
from cqd_hub.run.executors._worker import Opening, Worker, open_worker

_LOOK = 3.0  # seconds between two looks at what the cluster has
_MISSED = 4  # looks in a row that find the cluster, or this run's node, gone
_PATIENCE = 600.0  # seconds that a run without any worker waits for one


class RayExecutor(HandingOut["_Hand"]):
    """One actor per GPU of the cluster, or per *workers* on machines without.

    Args:
        opening: What each of them opens.
        basis: Sent to machines whose cache lacks it.
        address: ``ray://host:port``, or None for the cluster that `ray.init` finds, else a new one
            of this machine alone.
        workers: At most so many; None takes all that the cluster has room for.
        note: Called with a line for what a person should know.
    """

    def __init__(
        self,
        opening: Opening,
        basis: Basis,
        *,
        address: str | None,
        workers: int | None,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._opening, self._basis, self._address = opening, basis, address
        self._wanted, self._note = workers, note
        self._crew: list[_Hand] = []
        self._refused: set[str] = set()  # nodes that lack something
        self._free: asyncio.Queue[_Hand] = asyncio.Queue()
        self._recruiter: asyncio.Task[None] | None = None

    @property
    def workers(self) -> int:
        return max(len(self._crew), 1)

    @property
    def width(self) -> int:
        return max(sum(hand.width for hand in self._crew), 1)

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(_connect, self._address)
        try:
            import ray

            stores: dict[str, dict[str, Any]] = {}
            if len(_nodes()) > 1 or self._address is not None:
                for store, name, path in basis_files(self._basis):
                    stores.setdefault(store, {})[name] = ray.put(path.read_bytes())
            self._stores = stores
            await self._recruit(first=True)
            self._recruiter = asyncio.create_task(self._keep_recruiting())
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import ray

        if self._recruiter is not None:
            self._recruiter.cancel()
            await asyncio.gather(self._recruiter, return_exceptions=True)
        for hand in self._crew:
            with contextlib.suppress(Exception):  # it may be gone
                ray.kill(hand.actor)
        await asyncio.to_thread(ray.shutdown)

    async def manifests(self) -> Sequence[dict[str, Any]]:
        return [hand.manifest for hand in self._crew]

    async def _take(self) -> _Hand:
        assert self._recruiter is not None
        while True:
            coming = asyncio.ensure_future(self._free.get())
            try:
                await asyncio.wait(
                    (coming, self._recruiter),
                    timeout=_PATIENCE,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            except asyncio.CancelledError:
                if coming.done():
                    self._free.put_nowait(coming.result())
                raise
            finally:
                coming.cancel()
            if self._recruiter.done():
                await self._recruiter  # raises what ended it
            if coming.done() and (hand := coming.result()) in self._crew:
                return hand
            if not coming.done() and not self._crew:  # else all are busy with long jobs
                raise RunError(
                    f"no worker came within {_PATIENCE:g} s",
                    where="ray",
                    remedy="see `ray status`, then run the same command again",
                )

    async def _ask(self, hand: _Hand, order: bytes) -> bytes:
        import ray.exceptions

        try:
            data: bytes = await hand.actor.evaluate.remote(order)
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise WorkerGone(_words(error)) from None
        return data

    def _lost(self, hand: _Hand, words: str) -> None:
        if hand in self._crew:
            self._crew.remove(hand)
            self._note(f"a worker ended ({words}); its children are evaluated again")

    def _give_back(self, hand: _Hand) -> None:
        if hand in self._crew:
            self._free.put_nowait(hand)

    # Who works.

    async def _keep_recruiting(self) -> None:
        own = await asyncio.to_thread(_own_node)
        missed = 0
        while True:
            await asyncio.sleep(_LOOK)
            try:
                if own not in await asyncio.to_thread(_nodes):
                    raise RunError(
                        "the node that this run reaches the cluster through has ended",
                        where="ray",
                        remedy="run the same command again; no evaluated child is lost",
                    )
            except RunError:
                missed += 1
                if missed == _MISSED:
                    raise
                continue
            missed = 0
            with contextlib.suppress(CqdHubError):  # told by a note
                await self._recruit()

    async def _recruit(self, *, first: bool = False) -> None:
        """Start an actor on every node that has room for one; of the first ones wait for one."""
        places = [
            place for place in await asyncio.to_thread(_rooms) if place[0] not in self._refused
        ]
        room = (self._wanted or len(places)) - len(self._crew)
        taken = {hand.place for hand in self._crew}
        new = [_Hand(place) for place in places if place not in taken][: max(room, 0)]
        results = await asyncio.gather(*(self._open(hand) for hand in new), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, CqdHubError):
                raise result
        if first and not self._crew:
            errors = [result for result in results if isinstance(result, CqdHubError)]
            if errors:
                raise errors[0]
            raise UserError(
                "the cluster has no room for a worker",
                where="ray",
                remedy="see `ray status`; a worker needs one GPU, or one CPU where there is none",
            )

    async def _open(self, hand: _Hand) -> None:
        import ray.exceptions

        try:
            await hand.open(self._opening, self._stores)
        except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
            raise RunError(f"a worker does not start: {_words(error)}", where="ray") from None
        except CqdHubError as error:
            self._refused.add(hand.place[0])
            self._note(f"node {hand.place[0][:8]} is left out: {error}")
            raise
        self._crew.append(hand)
        for _ in range(hand.width):
            self._free.put_nowait(hand)


class _Hand:
    """One actor and what the driver knows of it.

    Args:
        place: (node, number on it).
    """

    def __init__(self, place: tuple[str, int]) -> None:
        self.place = place
        self.actor: Any = None
        self.manifest: dict[str, Any] = {}
        self.width = 1

    async def open(self, opening: Opening, stores: Any) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        gpus = ray.cluster_resources().get("GPU", 0) > 0
        pinned = NodeAffinitySchedulingStrategy(self.place[0], soft=False)
        options: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        actor = ray.remote(_Actor).options(
            **options, scheduling_strategy=pinned, max_concurrency=64
        )
        self.actor = actor.remote(opening.to_json())
        told = json.loads(await self.actor.open.remote(stores))
        refuse_error(told)
        self.manifest, self.width = told["manifest"], told["width"]


class _Actor:
    """What Ray keeps on another machine."""

    def __init__(self, opening: str) -> None:
        self._opening = Opening.from_json(opening)
        self._stack = AsyncExitStack()
        self._worker: Worker | None = None

    async def open(self, stores: dict[str, dict[str, Any]]) -> str:
        """Place the basis, open the workbench; a hello or an error, as JSON."""
        import ray

        def content(reference: Any) -> Callable[[], bytes]:
            return lambda: ray.get(reference)

        try:
            if stores:
                wanted = {
                    store: {name: content(reference) for name, reference in files.items()}
                    for store, files in stores.items()
                }
                await asyncio.to_thread(place_basis, wanted)
            self._worker = await self._stack.enter_async_context(open_worker(self._opening))
        except CqdHubError as error:
            return encode_error(error).decode()
        return self._worker.hello

    async def evaluate(self, order: bytes) -> bytes:
        assert self._worker is not None
        return await self._worker.evaluate(order)


def _connect(address: str | None) -> None:
    """Join or start a cluster.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached or speaks another version.
    """
    try:
        import ray
    except ImportError:
        raise UserError(
            "Ray is not installed", where="--executor", remedy="pip install 'cqd-hub[ray]'"
        ) from None
    if address is not None:
        _knock(address)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=None if address else False,
        )
    except (ConnectionError, TimeoutError) as error:
        raise UserError(
            f"no Ray cluster answers: {_words(error)}",
            where=f"--executor {address or 'ray'}",
            remedy="start it with `ray start --head`, and check address and port",
        ) from None
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the Ray cluster cannot be joined: {_words(error)}",
            where=f"--executor {address or 'ray'}",
            remedy=f"use Ray {version('ray')} and this Python on all machines",
        ) from None


def _knock(address: str) -> None:
    """Raise a `UserError` where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray cluster answers: {printable(str(error))}",
            where=f"--executor {address}",
            remedy="start it with `ray start --head`, and check address and port",
        ) from None


def _nodes() -> dict[str, dict[str, float]]:
    """Id → resources of the nodes that live.

    Raises:
        RunError: The cluster itself does not answer.
    """
    import ray

    try:
        found = ray.nodes()
    except Exception as error:  # of its transport, which has many kinds
        raise _silent(error) from None
    return {node["NodeID"]: node["Resources"] for node in found if node["Alive"]}


def _own_node() -> str:
    import ray

    try:
        return str(ray.get_runtime_context().get_node_id())
    except Exception as error:  # of its transport, which has many kinds
        raise _silent(error) from None


def _silent(error: Exception) -> RunError:
    return RunError(
        f"the cluster does not answer: {_words(error)}",
        where="ray",
        remedy="see `ray status`, then run the same command again",
    )


def _rooms() -> list[tuple[str, int]]:
    """(node, number) of every worker that the cluster as a whole has room for."""
    nodes = _nodes()
    key = "GPU" if any(resources.get("GPU") for resources in nodes.values()) else "CPU"
    return [
        (node, number)
        for node, resources in nodes.items()
        for number in range(int(resources.get(key, 0)))
    ]


def _words(error: BaseException) -> str:
    """The first telling line of an error of Ray's, which may be pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[0] if lines else type(error).__name__, 200)
