"""Playing one sample in its environment, or from memory where its turns are known."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from cqd_hub.errors import CqdHubError, RunError
from cqd_hub.evaluation.episodes._interface import (
    Environment,
    Episode,
    Message,
    Sample,
    Turn,
    Verdict,
)
from cqd_hub.evaluation.episodes.memory import Key, Memory, key_of
from cqd_hub.evaluation.judging import Judge

T = TypeVar("T")


class EpisodeLost(Exception):
    """Not the reply but the environment failed.

    Args:
        error: How.
    """

    def __init__(self, error: RunError) -> None:
        super().__init__(error)
        self.error = error


class Stage:
    """Where the episodes of one skill are played: so many at a time as the environment allows.

    Args:
        environment: Open.
        where: Names the skill in errors.
    """

    def __init__(self, environment: Environment, where: str) -> None:
        self.environment, self._where = environment, where
        self.slots = asyncio.Semaphore(environment.live)
        self.memory = Memory() if environment.repeatable else None

    async def act(self, judge: Judge, sample: Sample, work: Callable[[], Awaitable[T]]) -> T:
        """Let the environment work.

        Raises:
            EpisodeLost: It failed.
        """
        try:
            with judge.executing():
                return await work()
        except RunError as error:
            raise EpisodeLost(error) from error
        except CqdHubError:
            raise
        except Exception as error:  # an environment's own code raises whatever it raises
            failure = RunError(
                f"the environment failed on sample {sample.id}: {type(error).__name__}: {error}",
                where=self._where,
                remedy="mend what it needs, then run the same command again",
            )
            raise EpisodeLost(failure) from error


class Scene:
    """One sample, played once. `close` it whatever happens.

    A place on the stage is taken when the first turn is not known from memory.
    """

    def __init__(self, stage: Stage, sample: Sample, judge: Judge) -> None:
        self._stage, self._sample, self._judge = stage, sample, judge
        self._episode: Episode | None = None
        self._replies: list[Message] = []
        self._said: list[str] = []
        self._remembered = True
        self._played = 0  # of the replies, by the real episode

    async def opening(self) -> tuple[Message, ...]:
        """The conversation before the first reply."""
        memory = self._stage.memory
        if memory is not None and self._sample.id in memory.openings:
            return memory.openings[self._sample.id]
        episode = await self._begun()
        if memory is not None:
            memory.openings[self._sample.id] = episode.opening
        return episode.opening

    async def step(self, reply: Message, said: str) -> Turn:
        """What follows a reply; *said* is what it is known by."""
        self._replies.append(reply)
        self._said.append(said)
        self._remembered = self._remembered and self._stage.environment.remembered(said)
        return await self._known(key_of(self._sample.id, self._said), self._play)

    async def end(self, status: str) -> Verdict:
        """The verdict where the conversation stops for a reason of ours."""

        async def ended() -> Turn:
            if self._played < len(self._replies):
                await self._play()
            episode = await self._begun()
            return await self._act(lambda: episode.end(status))

        verdict = await self._known(key_of(self._sample.id, self._said, status), ended)
        assert isinstance(verdict, Verdict)
        return verdict

    async def close(self) -> None:
        """Give the place on the stage back."""
        episode, self._episode = self._episode, None
        if episode is not None:
            try:
                with suppress(Exception):  # its verdict stands; a lost machine has gone already
                    await episode.close()
            finally:
                self._stage.slots.release()

    async def _known(self, key: Key, find: Callable[[], Awaitable[Turn]]) -> Turn:
        """From memory, else found out; what another scene is finding out is waited for."""
        memory = self._stage.memory
        if memory is None or not self._remembered:
            return await find()
        while True:
            if (turn := memory.turns.get(key)) is not None:
                self._judge.verdicts.reused += 1
                return turn
            if (doing := memory.doing.get(key)) is not None:
                await doing.wait()
            elif self._episode is None:  # before others wait for us: they may hold all places
                await self._begun()
            else:
                break
        doing = memory.doing[key] = asyncio.Event()
        try:
            memory.turns[key] = turn = await find()
            return turn
        finally:
            del memory.doing[key]
            doing.set()

    async def _play(self) -> Turn:
        """Let the real episode catch up with the replies; the turn after the last."""
        episode = await self._begun()
        while True:
            reply = self._replies[self._played]
            turn = await self._act(lambda reply=reply: episode.step(reply))  # type: ignore[misc]
            self._played += 1
            self._judge.executed += 1
            if self._played == len(self._replies):
                return turn
            if isinstance(turn, Verdict):
                failure = RunError(
                    f"sample {self._sample.id} ended where it went on before, for equal replies",
                    remedy="its environment is not repeatable: say so in its class",
                )
                raise EpisodeLost(failure)

    async def _begun(self) -> Episode:
        if self._episode is None:
            stage = self._stage
            await stage.slots.acquire()
            try:
                self._episode = await self._act(lambda: stage.environment.begin(self._sample))
            except BaseException:
                stage.slots.release()
                raise
        return self._episode

    async def _act(self, work: Callable[[], Awaitable[T]]) -> T:
        return await self._stage.act(self._judge, self._sample, work)
