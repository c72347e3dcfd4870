"""One machine started ahead, so that a fresh one is there when it is asked for."""

from __future__ import annotations

import abc
import asyncio
import contextlib

from cqd_hub.errors import RunError

from ._agent import AgentMachine
from ._interface import Machine, MachineLimits, MachineLost, Machines

TRIES = 3


class SpareMachines(Machines):
    """Machines of which the next is started when one is taken.

    Attributes:
        missing: Lines for people: what machines lack here that they have elsewhere.
    """

    missing: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._next: tuple[MachineLimits, asyncio.Task[AgentMachine]] | None = None
        self._started: set[AgentMachine] = set()

    @abc.abstractmethod
    async def _new(self, limits: MachineLimits) -> AgentMachine:
        """Start one, without waiting for it to be ready.

        Raises:
            OSError: The launcher cannot be started.
        """

    async def start(self, limits: MachineLimits = MachineLimits()) -> Machine:  # noqa: B008
        reasons = []
        for _ in range(TRIES):
            ahead, self._next = self._next, None
            if ahead is not None and ahead[0] != limits:
                await _discard(ahead[1])
                ahead = None
            task = ahead[1] if ahead else asyncio.create_task(self._open(limits))
            try:
                machine = await task
            except MachineLost as lost:
                reasons.append(str(lost))
                continue
            except asyncio.CancelledError:
                await _discard(task)
                raise
            if self._next is None:  # else another has done so meanwhile
                self._next = limits, asyncio.create_task(self._open(limits))
            machine.hand_out()
            return machine
        raise RunError(
            f"no machine can be started: {reasons[-1]}",
            where=f"{self.kind} machines",
            remedy="free some memory or processes, then run the same command again",
        )

    async def _open(self, limits: MachineLimits) -> AgentMachine:
        try:
            machine = await self._new(limits)
        except OSError as error:
            raise MachineLost(f"{error.strerror}: {error.filename}") from None
        self._started.add(machine)
        machine.forget = self._started.discard
        try:
            await machine.ready()
        except BaseException:
            await machine.close()
            raise
        return machine

    async def close(self) -> None:
        ahead, self._next = self._next, None
        if ahead is not None:
            await _discard(ahead[1])
        for machine in list(self._started):
            await machine.close()


async def _discard(task: asyncio.Task[AgentMachine]) -> None:
    """Give up a machine that is being started, or was."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, MachineLost):
        machine = await task
        await machine.close()
