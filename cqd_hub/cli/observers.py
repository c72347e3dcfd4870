"""How a run's progress is shown: a live panel on a terminal, lines elsewhere, or JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cqd_hub.cli.panel import Panel, State, fitted, score

if TYPE_CHECKING:
    from cqd_hub.run.progress import Observer, Progress

_WIDTH = 100  # columns of a line that goes to no terminal


@contextmanager
def make_observer(*, quiet: bool, as_json: bool) -> Iterator[Observer]:
    """The observer for this terminal, which it leaves as it was."""
    from cqd_hub.run.progress import Silent

    if quiet:
        yield Silent()
    elif as_json:
        yield JsonLines()
    elif sys.stderr.isatty():
        live = Live()
        try:
            yield live
        finally:
            live.close()
    else:
        yield Lines()


class JsonLines:
    """One JSON object per event on stderr; stdout is kept for the result."""

    def phase(self, name: str) -> None:
        self._write({"event": "phase", "name": name})

    def note(self, line: str) -> None:
        self._write({"event": "note", "text": line})

    def progress(self, progress: Progress) -> None:
        self._write({"event": "child", **progress.as_dict()})

    def measured(self, done: int, total: int) -> None:
        self._write({"event": "measured", "done": done, "total": total})

    @staticmethod
    def _write(record: dict[str, Any]) -> None:
        print(json.dumps(record), file=sys.stderr, flush=True)


class Lines:
    """A line every few seconds, for logs and pipes."""

    def __init__(self, every: float = 5.0) -> None:
        self._every, self._last = every, 0.0
        self._clock = Clock()

    def phase(self, name: str) -> None:
        self._clock = Clock()
        print(_PHASES.get(name, name), file=sys.stderr, flush=True)

    def note(self, line: str) -> None:
        print(f"  {line}", file=sys.stderr, flush=True)

    def progress(self, progress: Progress) -> None:
        self._line(child_state(progress))

    def measured(self, done: int, total: int) -> None:
        state = self._clock.state(done, total)
        if state.left or done == total:
            self._line(state)

    def _line(self, state: State) -> None:
        now = time.monotonic()
        if now - self._last >= self._every or state.done == state.total:
            self._last = now
            print(f"  {fitted(_pieces(state), _WIDTH - 2)}", file=sys.stderr, flush=True)


class Live:
    """A bar with the archives' state under it, as wide as the terminal allows."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._panel, self._shown = Panel(), None
        self._clock = Clock()

    _shown: Any  # rich's Live while a phase counts

    def close(self) -> None:
        """Take the bar away and give the cursor back."""
        if self._shown is not None:
            self._shown.stop()
            self._shown = None

    def phase(self, name: str) -> None:
        self.close()
        self._clock = Clock()
        self._console.print(_PHASES.get(name, name), style="bold", markup=False)

    def note(self, line: str) -> None:
        self._console.print(f"  {line}", markup=False, style="dim")

    def progress(self, progress: Progress) -> None:
        self._show(child_state(progress))
        if progress.children >= progress.total:
            self.close()
            self._print(_pieces(child_state(progress)))

    def measured(self, done: int, total: int) -> None:
        self._show(self._clock.state(done, total))

    def _show(self, state: State) -> None:
        from rich.live import Live as Region

        self._panel.state = state
        if self._shown is None:
            self._shown = Region(self._panel, console=self._console, transient=True)
            self._shown.start()

    def _print(self, pieces: list[str]) -> None:
        from rich.padding import Padding
        from rich.text import Text

        self._console.print(Padding(Text(" · ".join(pieces)), (0, 0, 0, 2)))


class Clock:
    """How long the individuals of a phase take, from its first count on."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def state(self, done: int, total: int) -> State:
        """What there is to show after *done* of *total*."""
        now = time.monotonic()
        if self._start is None:
            self._start = now, done
        began, before = self._start
        each = (now - began) / (done - before) if done > before else None
        left = (
            f"{_duration(each * (total - done))} left for this phase"
            if each and done < total
            else ""
        )
        return State("individuals", done, total, left, ())


_PHASES = {
    "opening": "Opening models and tasks",
    "experts": "Evaluating base and experts",
    "children": "Evolving (scores are of the optimisation samples)",
    "validation": "Choosing on validation samples",
    "test": "Measuring finalists on test samples",
}


def child_state(progress: Progress) -> State:
    """A child's progress as it is shown, the most telling words first."""
    left = f"{_duration(progress.eta_seconds)} left for children" if progress.eta_seconds else ""
    best = ", ".join(f"{skill} {score(value)}" for skill, value in progress.best.items())
    words = [f"best average {score(progress.average)} %", f"best {best} %"]
    words += [f"coverage {score(progress.coverage)} %", f"QD score {progress.qd_score:.1f}"]
    if progress.per_minute is not None:
        words.append(_pace(progress.per_minute))
    if progress.children < progress.total:
        words.append(f"{progress.skill}'s turn")
    return State("children", progress.children, progress.total, left, tuple(words))


def _pieces(state: State) -> list[str]:
    count = f"{state.done}/{state.total} {state.what}"
    return [count, *([state.left] if state.left else []), *state.words]


def _pace(per_minute: float) -> str:
    if per_minute < 10:
        return f"{60 * per_minute:.0f} children/h"
    return f"{per_minute:.0f} children/min"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
