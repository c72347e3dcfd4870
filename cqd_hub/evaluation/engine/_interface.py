"""What an engine takes and gives. No torch here."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from cqd_hub.errors import UserError
    from cqd_hub.genome import Genome


class Candidate(NamedTuple):
    """The individual that is to answer."""

    id: int
    genome: Genome


@dataclass(frozen=True)
class Generate:
    """Continue a prompt.

    Args:
        prompt: Token ids, at least one.
        max_new_tokens: Limit on the answer.
        stop: Strings that end the answer and are cut from it.
        temperature: 0 is greedy.
        top_p: Nucleus; only with a temperature.
        seed: Of the draws; the same request gives the same answer.
        drafts: Token ids that the answer may turn out to be, such as the parents' answers. They
            never change it, only how soon it is there.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    drafts: tuple[tuple[int, ...], ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class LogLikelihood:
    """Score *continuation* after *prompt* (token ids, at least one each)."""

    prompt: tuple[int, ...]
    continuation: tuple[int, ...]


Request = Generate | LogLikelihood


@dataclass(frozen=True)
class Reply:
    """What came back.

    Args:
        text: Generated text before the stop string.
        tokens: Generated token ids, the stop included.
        finish: ``"stop"``, ``"length"``, ``"scored"`` for a log-likelihood, or ``"nan"`` where the
            individual's logits are no numbers: *tokens* is what came before.
        log_likelihood: Sum over the continuation, in nats.
        greedy: Whether the continuation is what greedy decoding would give.
        passes: Forward passes that made the answer, the prompt's included.
        drafted: How many of the tokens were accepted from a draft.
        path: How it was made, where it differs from the engine's own `Engine.path`.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    finish: str = ""
    log_likelihood: float = 0.0
    greedy: bool = False
    passes: int = field(default=0, compare=False)
    drafted: int = field(default=0, compare=False)
    path: str = field(default="", compare=False)


class Engine(Protocol):
    """Model in, text out. Open with ``async with``."""

    @property
    def path(self) -> str:
        """How scores are made: engine, dtype and device. Recorded with each score."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer whose ids requests are made of."""
        ...

    @property
    def canonical(self) -> Engine:
        """The engine on the sequential path, whose scores may be reported; open as this one is."""
        ...

    def misfit(self, request: Request) -> UserError | None:
        """Why the model cannot answer a request (its context, its tokens), or None."""
        ...

    def submit(self, candidate: Candidate, request: Request) -> asyncio.Future[Reply]:
        """Queue a request; results come as they finish, in no particular order.

        Cancelling the future withdraws the request; leaving the engine cancels what still waits.

        Raises:
            RuntimeError: The engine is not open.

        Raises (from the future):
            UserError: What `misfit` says of the request.
            RunError: It does not fit the device's memory.
        """
        ...
