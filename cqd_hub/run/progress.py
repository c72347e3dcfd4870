"""What a run tells while it goes on; how it is shown is the observer's business."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from cqd_hub.search import Cycle


@dataclass(frozen=True)
class Progress:
    """The state after a child; the archives change once the whole generation is evaluated.

    Args:
        children: Evaluated so far, of ``total`` (whole generations).
        skill: The active one.
        best: Skill → best score in its archive (optimisation samples).
        mean: Skill → mean score of that skill over its archive's elites.
        average: Best average over skills of any elite.
        coverage: Mean filled fraction of the archives.
        qd_score: Sum over the archives.
        per_minute: Children per minute, over the last ones.
        eta_seconds: Until ``total`` at that pace.
        reused: Share of executed answers that had been judged before.
    """

    children: int
    total: int
    skill: str
    best: Mapping[str, float]
    mean: Mapping[str, float]
    average: float
    coverage: float
    qd_score: float
    per_minute: float | None
    eta_seconds: float | None
    reused: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


class Observer(Protocol):
    """Gets every event of a run, in order, on the run's event loop."""

    def phase(self, name: str) -> None:
        """A new part of the run begins: "opening", "experts", "children", "validation", "test"."""
        ...

    def note(self, line: str) -> None:
        """Something worth a line."""
        ...

    def progress(self, progress: Progress) -> None:
        """A child was evaluated."""
        ...

    def measured(self, done: int, total: int) -> None:
        """So many of a phase's individuals that are no children have their scores.

        Told once before the first that has to be evaluated, and after each.
        """
        ...


class Silent:
    """Observes nothing."""

    def phase(self, name: str) -> None:
        """Ignore."""

    def note(self, line: str) -> None:
        """Ignore."""

    def progress(self, progress: Progress) -> None:
        """Ignore."""

    def measured(self, done: int, total: int) -> None:
        """Ignore."""


class Stopped(Exception):
    """The person asked the run to stop; everything evaluated is kept."""


class Pace:
    """Children per minute over a sliding window."""

    def __init__(self, window: int = 20) -> None:
        self._times: deque[float] = deque(maxlen=window + 1)

    def tick(self, now: float) -> None:
        """One more is done, at *now* seconds of a monotonic clock."""
        self._times.append(now)

    def per_minute(self) -> float | None:
        """None until two are done."""
        if len(self._times) < 2:
            return None
        span = self._times[-1] - self._times[0]
        return 60 * (len(self._times) - 1) / span if span > 0 else None


def best_average(cycle: Cycle) -> float:
    """The best average over skills that any elite of any archive has."""
    averages = [
        float(archive.elites.scores.mean(axis=1).max())
        for archive in cycle.archives
        if len(archive)
    ]
    return max(averages, default=0.0)
