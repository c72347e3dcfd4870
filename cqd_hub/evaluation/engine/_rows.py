"""The rows of a slot loop: an answer in the making each, and how they are packed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from cqd_hub.errors import RunError
from cqd_hub.evaluation.engine._decoding import StopWords
from cqd_hub.evaluation.engine._drafts import Drafts
from cqd_hub.evaluation.engine._interface import Generate, Request

Ticket = TypeVar("Ticket")

_PACK = 128  # tokens that short rows are packed into


@dataclass
class Counts:
    """What a loop has done: passes, tokens answered, tokens proposed and accepted of drafts."""

    passes: int = 0
    tokens: int = 0
    proposed: int = 0
    accepted: int = 0


@dataclass(eq=False)
class Row(Generic[Ticket]):
    ticket: Ticket
    request: Generate
    owner: Hashable
    watch: StopWords
    drafts: Drafts | None
    draws: torch.Generator | None
    answer: list[int] = field(default_factory=list)
    passes: int = 0
    drafted: int = 0
    alone: bool = False
    proposal: list[int] = field(default_factory=list)

    @property
    def limit(self) -> int:
        return len(self.request.prompt) + self.request.max_new_tokens

    @property
    def length(self) -> int:
        """Tokens so far; after a pass all but the newest are in the cache."""
        return len(self.request.prompt) + len(self.answer)

    def propose(self) -> None:
        left = self.request.max_new_tokens - len(self.answer) - 1
        self.proposal = self.drafts.propose(self.answer, left) if self.drafts else []


def pack(lengths: Sequence[int], owners: Sequence[Hashable]) -> list[list[int]]:
    """Which rows to read behind each other: longest first, each into the first pack with room.

    No pack is longer than the longest row, or `_PACK`, and each has rows of one owner alone.
    """
    most = max(_PACK, *lengths)
    packs: dict[Hashable, list[tuple[int, list[int]]]] = {}
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        mine = packs.setdefault(owners[place], [])
        for number, (used, one) in enumerate(mine):
            if used + lengths[place] <= most:
                one.append(place)
                mine[number] = used + lengths[place], one
                break
        else:
            mine.append((lengths[place], [place]))
    return [one for mine in packs.values() for _, one in mine]


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or the CPU's allocator, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def too_large() -> RunError:
    """The error of a request that does not fit alone."""
    return RunError(
        "the device's memory does not hold a single request",
        remedy="use a device with more memory, a smaller dtype, or shorter prompts and answers",
    )


def length_of(request: Request) -> int:
    """Tokens of prompt and answer together, at most."""
    if isinstance(request, Generate):
        return len(request.prompt) + request.max_new_tokens
    return len(request.prompt) + len(request.continuation)
