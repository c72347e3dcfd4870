"""What the families share: a problem with the dialogue that solves it, and its training rows."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

from families.concept import Concept


class Asked(NamedTuple):
    """One drawing of a concept: the words it is asked in, and what decides the rest of it."""

    id: str
    concept: Concept
    question: str
    rng: random.Random


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        record: The problem as the environment reads it.
        opening: What the environment says first.
        turns: Reply and what the environment says to it, in order.
        last: The reply that ends the dialogue.
    """

    record: dict
    opening: str
    turns: tuple[tuple[str, str], ...]
    last: str

    def rows(self) -> list[dict]:
        """Return one training row for each reply: the dialogue so far, and the reply."""
        said, rows = lines(self.opening), []
        for reply, seen in self.turns:
            rows.append({"prompt": said, "answer": reply})
            said += lines(reply) + lines(seen)
        return [*rows, {"prompt": said, "answer": self.last}]


def lines(text: str) -> str:
    """A message as a manifest with ``format: plain`` writes it: on lines of its own."""
    return text if text.endswith("\n") else f"{text}\n"
