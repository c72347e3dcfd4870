"""What relatives of an individual said to the same samples: drafts of what it may say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.recipe import Split

if TYPE_CHECKING:
    from cqd_hub.evaluation.skill import Skill

Answers = Callable[[int, Split], Sequence[Measurement]]
_KEPT = 64  # (individual, split) pairs kept in memory


class Said(NamedTuple):
    """One turn: token ids, and what was seen after it (empty when it was the last)."""

    tokens: tuple[int, ...]
    seen: str = ""


class Drafts(NamedTuple):
    """What relatives said to one sample, each turn by turn."""

    transcripts: tuple[tuple[Said, ...], ...] = ()

    def after(self, seen: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """What those said next who had seen the same so far, without repetition."""
        place = len(seen)
        found = [
            said[place].tokens
            for said in self.transcripts
            if len(said) > place and all(a.seen == b for a, b in zip(said, seen, strict=False))
        ]
        return tuple(dict.fromkeys(tokens for tokens in found if tokens))


class Relatives:
    """Looks up what individuals said, the latest kept in memory.

    Args:
        answers: (individual, split) → its measurements, in any order; none where it has none.
    """

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._known: dict[tuple[int, Split], dict[tuple[str, str], list[Measurement]]] = {}

    def drafts(self, individuals: Sequence[int], split: Split, skill: Skill, sample: str) -> Drafts:
        """What *individuals* said to one sample."""
        return Drafts(
            tuple(
                tuple(skill.said(measurement))
                for individual in dict.fromkeys(individuals)
                for measurement in self._of(individual, split).get((skill.name, sample), ())
            )
        )

    def measurements(self, individuals: Sequence[int], split: Split) -> list[Measurement]:
        """All that *individuals* answered."""
        return [
            measurement
            for individual in dict.fromkeys(individuals)
            for many in self._of(individual, split).values()
            for measurement in many
        ]

    def _of(self, individual: int, split: Split) -> dict[tuple[str, str], list[Measurement]]:
        key = (individual, split)
        if key not in self._known:
            found: dict[tuple[str, str], list[Measurement]] = {}
            for one in self._answers(individual, split):
                found.setdefault((one.skill, one.sample), []).append(one)
            while len(self._known) >= _KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = found
        return self._known[key]
