"""Turns already seen: where equal replies get equal turns, none is executed twice."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

from cqd_hub.evaluation.episodes._interface import Message, Turn

Key = bytes


def key_of(sample: str, replies: Sequence[str], end: str = "") -> Key:
    """Of the turn that follows *replies*; with *end*, of the verdict when they end like that."""
    digest = hashlib.sha256()
    for part in (sample, *replies, f"\0{end}"):
        data = part.encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8) + data)
    return digest.digest()


class Memory:
    """Turns by sample and replies so far.

    Attributes:
        openings: Sample → the conversation before its first reply.
        turns: What is known.
        doing: What somebody finds out now: wait, then look again.
    """

    def __init__(self) -> None:
        self.openings: dict[str, tuple[Message, ...]] = {}
        self.turns: dict[Key, Turn] = {}
        self.doing: dict[Key, asyncio.Event] = {}
