"""Which samples to ask next, where an answer may come to be of no use to anybody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from cqd_hub.evaluation.measurement import Measurement

Bounds = Mapping[str, tuple[float, float]]
Decided = Callable[[Bounds], bool]

_SLACK = 1e-9  # sums of scores between 0 and 1 round
_FEWEST = 32  # a block has at least one in so many of all samples
_FALL = 0.95  # of what its parents score on a sample is what a child is expected to
_UNKNOWN = 0.5


class _Tally(NamedTuple):
    """One skill: samples answered and not, the answered ones' scores, and if all are 0 or 1."""

    answered: int
    left: int
    total: float = 0.0
    binary: bool = True

    def plus(self, score: float) -> _Tally:
        binary = self.binary and score in (0.0, 1.0)
        return _Tally(self.answered + 1, self.left - 1, self.total + score, binary)

    def expecting(self, scores: Iterable[float]) -> _Tally:
        found = list(scores)
        count, more = len(found), _FALL * sum(found)
        return _Tally(self.answered + count, self.left - count, self.total + more, self.binary)

    def bounds(self) -> tuple[float, float]:
        count, slack = self.answered + self.left, 0.0 if self.binary else _SLACK
        return (
            max(self.total / count - slack, 0.0),
            min((self.total + self.left) / count + slack, 1.0),
        )


class Course:
    """An individual's way through its samples, in blocks, until its fate is decided.

    Skill after skill, so that all scores but one are soon known; within a skill first what its
    parents get wrong, which brings the upper bound down to the score early: what remains open then
    are lower scores, whose places in an archive are rather taken. A block ends where, going by the
    parents, the decision is to be expected. So there are few of them, most often one with
    everything in it: small ones make poor batches.

    Args:
        samples: Skill → ids of its samples, in the order in which to take the skills.
        parents: What the parents answered to them.
        decided: Told every skill's lowest and highest possible score; whether that settles it. It
            must hold for narrower bounds too.
    """

    def __init__(
        self,
        samples: Mapping[str, Sequence[str]],
        parents: Iterable[Measurement],
        decided: Decided,
    ) -> None:
        known: dict[tuple[str, str], list[float]] = {}
        for one in parents:
            known.setdefault((one.skill, one.sample), []).append(one.score)
        self._expected = {
            (skill, sample): _mean(known.get((skill, sample), [_UNKNOWN]))
            for skill, many in samples.items()
            for sample in many
        }
        self._left = [
            (skill, sample)
            for skill, many in samples.items()
            for sample in sorted(many, key=lambda sample: self._expected[skill, sample])
        ]
        self._decided = decided
        self._fewest = max(1, len(self._left) // _FEWEST)
        self._tallies = {skill: _Tally(0, len(many)) for skill, many in samples.items() if many}

    def block(self) -> set[tuple[str, str]]:
        """The next (skill, sample) pairs to ask; none where no more are needed."""
        if not self._left or self._settled(0):
            return set()
        first, last = min(self._fewest, len(self._left)), len(self._left)
        while first < last:  # bounds only narrow: once decided, always decided
            middle = (first + last) // 2
            if self._settled(middle):
                last = middle
            else:
                first = middle + 1
        block, self._left = self._left[:first], self._left[first:]
        return set(block)

    def note(self, measurements: Iterable[Measurement]) -> None:
        """Learn what came of a block."""
        scores: dict[tuple[str, str], list[float]] = {}
        for one in measurements:
            scores.setdefault((one.skill, one.sample), []).append(one.score)
        for (skill, _), repeats in scores.items():
            self._tallies[skill] = self._tallies[skill].plus(_mean(repeats))

    @property
    def stopped(self) -> dict[str, int] | None:
        """Skill → samples answered, if some were left out; else None."""
        if not self._left:
            return None
        return {skill: tally.answered for skill, tally in self._tallies.items()}

    def _settled(self, further: int) -> bool:
        """Whether the fate is decided, after so many more answers as they are expected."""
        if not any(tally.answered for tally in self._tallies.values()) and not further:
            return False
        coming: dict[str, list[float]] = {}
        for pair in self._left[:further]:
            coming.setdefault(pair[0], []).append(self._expected[pair])
        return self._decided(
            {
                skill: tally.expecting(coming.get(skill, ())).bounds()
                for skill, tally in self._tallies.items()
            }
        )


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)
