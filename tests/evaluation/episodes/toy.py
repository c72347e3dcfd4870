"""Environments of the tests' own, as a user would write them: real code, no model needed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from cqd_hub.errors import RunError
from cqd_hub.evaluation.episodes import (
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


class Letters(Environment):
    """Counts letters. Says what it does in a file, so that tests know what was executed."""

    class Options(Environment.Options):
        log: str
        count: int = 6
        kind: str = "letters/v1"
        dialect: Literal["short", "long"] = "short"
        verdict: Literal["judged", "never"] = "judged"
        blame: bool = False  # what is lost twice was the reply's doing
        fail: str = ""  # "where:sample:times", of begin or step
        slow: str = ""  # the sample whose steps wait until all others are done
        fault: str = ""
        live: int = 32
        system: bool = False

    rounds = 3
    options: Options

    def __init__(self, options: Options, folder: Path) -> None:
        super().__init__(options, folder)
        self.live = options.live
        self.living = self.most = 0
        self.failures: dict[str, int] = {}
        self.done = 0

    async def open(self, resources: Resources) -> None:
        self.kind = self.options.kind
        self.guarantees = f"pid {id(self)}"
        self.note("open")

    async def close(self) -> None:
        self.note("close")

    def note(self, *words: object) -> None:
        with Path(self.options.log).open("a") as file:
            print(*words, file=file)

    def samples(self) -> Mapping[str, Sequence[Sample]]:
        return {
            split: [
                Sample(
                    f"{split}-{n}",
                    f"how many letters has {split} {n}?",
                    {"n": n},
                    "known to be odd" if f"{split}-{n}" == self.options.fault else "",
                )
                for n in range(self.options.count)
            ]
            for split in ("optimisation", "validation", "test")
        }

    def fail(self, place: str, sample: Sample) -> None:
        if Path(self.options.log).with_name("mended").exists():
            return
        where, _, rest = self.options.fail.partition(":")
        name, _, times = rest.partition(":")
        if (place, sample.id) == (where, name):
            self.failures[name] = self.failures.get(name, 0) + 1
            if self.failures[name] <= int(times):
                raise RunError(f"the machine of {name} died")

    async def begin(self, sample: Sample) -> Episode:
        self.note("begin", sample.id)
        self.fail("begin", sample)
        self.living += 1
        self.most = max(self.most, self.living)
        return LettersEpisode(self, sample)

    async def lost(self, sample: Sample, error: RunError) -> Verdict | None:
        self.note("lost", sample.id, error.what)
        return Verdict(0.0, "its own doing") if self.options.blame else None


class LettersEpisode(Episode):
    def __init__(self, environment: Letters, sample: Sample) -> None:
        self._environment, self._sample, self._letters = environment, sample, 0
        first = [Message("system", "count")] if environment.options.system else []
        self.opening = (*first, Message("user", sample.question))
        self._round = 0

    async def step(self, reply: Message) -> Turn:
        environment, self._round = self._environment, self._round + 1
        environment.note("step", self._sample.id, json.dumps(reply.content))
        environment.fail("step", self._sample)
        while environment.options.slow == self._sample.id and environment.done < (
            environment.options.count - 1
        ):
            await asyncio.sleep(0)
        self._letters += len(reply.content)
        if environment.options.verdict == "judged" and self._letters % 3 == 0:
            return Verdict(self._letters % 7 / 6, note=f"{self._letters} letters")
        return Observation((Message("user", f"that is {len(reply.content)} letters"),))

    async def end(self, status: str) -> Verdict:
        self._environment.note("end", self._sample.id, status)
        return Verdict(self._letters % 5 / 4, status)

    async def close(self) -> None:
        self._environment.living -= 1
        self._environment.done += 1
        self._environment.note("close", self._sample.id)


class Remembered(Letters):
    """The same, remembered."""

    repeatable = True


class Forgetful(Remembered):
    """Remembered, but for what follows any reply."""

    def remembered(self, reply: str) -> bool:
        return False


class Calling(Letters):
    """Wants a function called."""

    tools = (
        Tool(
            "count",
            "Count the letters of a word.",
            {"type": "object", "properties": {"word": {"type": "string"}}},
        ),
    )

    async def begin(self, sample: Sample) -> Episode:
        await super().begin(sample)
        return CallingEpisode(self, sample)


class CallingEpisode(LettersEpisode):
    async def step(self, reply: Message) -> Turn:
        self._environment.note("calls", [call.name for call in reply.calls])
        if not reply.calls:
            return Verdict(0.0, "no call")
        return Observation(
            tuple(
                Message("tool", str(len(str(call.arguments.get("word")))), call=call.id)
                for call in reply.calls
            )
        )


class Broken(Letters):
    """Its own code has a mistake."""

    async def begin(self, sample: Sample) -> Episode:
        raise KeyError("no such thing")


class Unmade(Letters):
    """Cannot be made."""

    def __init__(self, options: Letters.Options, folder: Path) -> None:
        raise ValueError("not today")
