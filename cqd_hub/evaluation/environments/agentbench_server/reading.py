"""What both protocols share: turns as the server tells them, checked."""

from __future__ import annotations

import abc
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.episodes import Message, Tool, Verdict

from .client import Server, garbage, plain

T = TypeVar("T")
Index = int | str
RUNNING, TASK_ERROR, CANCELLED = "running", "task error", "cancelled"
STATUSES = frozenset(
    {
        RUNNING,
        TASK_ERROR,
        CANCELLED,
        "completed",
        "agent context limit",
        "agent validation failed",
        "agent invalid action",
        "task limit reached",
        "unknown",
    }
)
_LONGEST = 1 << 20  # characters of one turn
_MOST = 1000  # messages of one turn
_CANCELLING = 10.0  # seconds; the official server's own limits are 5 and 30


class Told(NamedTuple):
    """What the server says of a sample.

    Args:
        status: One of `STATUSES`.
        messages: What is new in the conversation.
        outcome: Once it is over: what the protocol judges it by.
        tools: The functions that may be called.
    """

    status: str
    messages: tuple[Message, ...]
    outcome: Any = None
    tools: tuple[Tool, ...] = ()

    @property
    def over(self) -> bool:
        return self.status != RUNNING


class Protocol(abc.ABC):
    """How a server is spoken to.

    Args:
        server: Open.
        name: Of the task.
    """

    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name = server, name

    async def indices(self) -> list[Index]:
        """All samples of the task.

        Raises:
            RunError: No such task, or no server.
        """
        answer = await self.server.ask("/get_indices", query={"name": self.name})
        where = f"{self.server.url}/get_indices"
        found = kept(answer.value, list, "the indices", where)
        if not all(type(one) is int or isinstance(one, str) for one in found):
            raise garbage("the indices are neither numbers nor names", where)
        return found

    @abc.abstractmethod
    async def start(self, index: Index) -> tuple[int, Told]:
        """Begin a sample: its session, and the opening."""

    @abc.abstractmethod
    async def interact(self, session: int, reply: Message) -> Told:
        """Pass the model's reply on."""

    async def context_full(self, session: int) -> Told | None:
        """Say that the model can go on no longer; None where the protocol has no word for it."""
        return None

    @abc.abstractmethod
    async def judge(self, index: Index, told: Told) -> Verdict:
        """The verdict of a sample that is over."""

    async def cancel(self, session: int) -> None:
        """Let the server forget a sample, if it can be reached and still knows it."""
        with suppress(RunError):
            await self.server.ask("/cancel", {"session_id": session}, timeout=_CANCELLING)


def kept(value: Any, kind: type[T], what: str, where: str) -> T:
    """*value*, which must be a *kind*.

    Raises:
        RunError: It is none.
    """
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise garbage(f"{what} is {plain(repr(value), 60)}", where)
    return value


def member(value: Any, key: str, kind: type[T], where: str) -> T:
    """A member of an object, which must be a *kind*.

    Raises:
        RunError: It is none, or not there.
    """
    if not isinstance(value, dict) or key not in value:
        raise garbage(f"has no {key!r}", where)
    return kept(value[key], kind, key, where)


def listed(value: dict[str, Any], key: str, where: str) -> list[Any]:
    """A member that is a list, empty where it is null or not there."""
    found = value.get(key)
    return [] if found is None else kept(found, list, key, where)


def status_of(value: Any, where: str) -> str:
    """The member `status`, one of `STATUSES`."""
    status = member(value, "status", str, where)
    if status not in STATUSES:
        raise garbage(f"status is {plain(repr(status), 60)}", where)
    return status


def bounded(messages: Sequence[Message], where: str) -> tuple[Message, ...]:
    """Messages of a turn, not too many and not too long."""
    if len(messages) > _MOST or sum(len(one.content) for one in messages) > _LONGEST:
        raise garbage(f"a turn of more than {_MOST} messages or {_LONGEST} characters", where)
    return tuple(messages)


def in_unit(score: float, what: str) -> float:
    """A score, refused where it does not lie in 0..1; NaN does not.

    Raises:
        UserError: So it is.
    """
    if not 0 <= score <= 1:
        raise UserError(
            f"{what} is {score:g}; a score must lie in 0..1",
            where="options.name",
            remedy="name a task whose samples pass or fail",
        )
    return float(score)


def speakable(text: str) -> str:
    """A reply's text without what UTF-8 cannot carry."""
    return re.sub("[\ud800-\udfff]", "�", text)
