"""What a multi-turn task is: an environment opened once, and one episode per sample."""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from cqd_hub.errors import RunError
from cqd_hub.recipe import Strict

if TYPE_CHECKING:
    from cqd_hub.evaluation.sandbox import Sandbox
    from cqd_hub.recipe.schema import Evaluation

Role = Literal["system", "user", "assistant", "tool"]
COMPLETED = "completed"
ROUNDS_SPENT = "task limit reached"
CONTEXT_FULL = "agent context limit"


@dataclass(frozen=True)
class ToolCall:
    """A function the model asks for; *arguments* as it wrote them, parsed from JSON."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True)
class Tool:
    """A function the model may ask for; *parameters* is a JSON schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. *call* names the `ToolCall` that a tool's message answers."""

    role: Role
    content: str
    calls: tuple[ToolCall, ...] = ()
    call: str = ""


@dataclass(frozen=True)
class Sample:
    """One problem.

    Args:
        id: Names it within its environment, the same in every version of the data's order.
        question: What is asked, as text: two purposes must not share it.
        document: All the environment needs to play and judge it.
        fault: What is known to be wrong with it, so that its score would say nothing; else empty.
    """

    id: str
    question: str
    document: Mapping[str, Any]
    fault: str = ""


class Observation(NamedTuple):
    """What the model sees next; the conversation goes on."""

    messages: tuple[Message, ...]


class Verdict(NamedTuple):
    """The end of an episode.

    Args:
        score: 0..1.
        status: How it ended: `COMPLETED`, or a word of the task's own ("agent invalid action").
        note: Why the score is what it is, printable.
    """

    score: float
    status: str = COMPLETED
    note: str = ""


Turn = Observation | Verdict


class Episode(abc.ABC):
    """One sample being played. Not for concurrent use; `close` it whatever happens.

    Attributes:
        opening: The conversation before the model's first reply.
    """

    opening: tuple[Message, ...]

    @abc.abstractmethod
    async def step(self, reply: Message) -> Turn:
        """Act on the model's reply (role assistant).

        Raises:
            RunError: The machine, not the reply, failed; the episode has no verdict.
        """

    async def end(self, status: str) -> Verdict:
        """Judge what stands when the rounds are spent or the model's context is full."""
        return Verdict(0.0, status)

    async def close(self) -> None:  # noqa: B027
        """Let go of what the episode holds."""


class Resources(NamedTuple):
    """What a run lends its environments.

    Args:
        settings: The recipe's `evaluation`.
        sandbox: The run's one sandbox, opened when first asked for.
        note: Called with a line for what takes time, or a person should know.
    """

    settings: Evaluation
    sandbox: Callable[[], Awaitable[Sandbox]]
    note: Callable[[str], None]


class Environment(abc.ABC):
    """Where the episodes of one skill are played; opened once for all individuals of a run.

    Args:
        options: The manifest's and the recipe's options, checked against `Options`.
        folder: What relative paths among them start from.

    Raises:
        UserError: Options or data files do not fit together.
    """

    class Options(Strict):
        """What may be chosen; a subclass adds its own."""

        faulty: Literal["leave-out", "keep"] = "leave-out"
        """Whether samples with a known fault are played; who plays them sees to it."""

    repeatable: ClassVar[bool] = False
    """Whether equal replies always get equal turns, so that turns may be remembered."""

    rounds: int = 8
    """Replies the model has, at most."""

    live: int = 32
    """Episodes between `begin` and `close` at the same time, at most."""

    tools: tuple[Tool, ...] = ()
    """Functions the model may call; empty where replies are text alone."""

    kind: str = ""
    """How replies are executed and judged; recorded with every score, and scores of different
    kinds are never compared (``"agentbench-v0.2/sqlite"``). Known after `open` at the latest."""

    guarantees: str = ""
    """One line for the manifest: versions, what is bounded and what is not. After `open`."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options, self.folder = options, folder

    @abc.abstractmethod
    def samples(self) -> Mapping[str, Sequence[Sample]]:
        """Data set split → its samples, in a fixed order."""

    def remembered(self, reply: str) -> bool:
        """Whether turns from this reply on may be remembered, where the environment is repeatable;
        *reply* is the model's whole text."""
        return True

    async def open(self, resources: Resources) -> None:  # noqa: B027
        """Start what episodes need: sandboxes, servers.

        Raises:
            UserError: Something is not installed or not permitted; the remedy says what.
        """

    async def close(self) -> None:  # noqa: B027
        """End what `open` started."""

    @abc.abstractmethod
    async def begin(self, sample: Sample) -> Episode:
        """Set one sample up.

        Raises:
            RunError: The machine failed.
        """

    async def lost(self, sample: Sample, error: RunError) -> Verdict | None:
        """What to make of *sample*, lost in both plays of one individual, the last with *error*.

        Returns:
            A verdict where the environment works and what was replied is to blame; None where it
            is not, or nobody knows: then the run ends with *error*.
        """
        return None
