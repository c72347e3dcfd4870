"""How a run's progress is shown: a live panel on a terminal, lines elsewhere, or JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cqd_hub.run.progress import Observer, Progress


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

    @staticmethod
    def _write(record: dict[str, Any]) -> None:
        print(json.dumps(record), file=sys.stderr, flush=True)


class Lines:
    """A line every few seconds, for logs and pipes."""

    def __init__(self, every: float = 5.0) -> None:
        self._every, self._last = every, 0.0

    def phase(self, name: str) -> None:
        print(_PHASES.get(name, name), file=sys.stderr, flush=True)

    def note(self, line: str) -> None:
        print(f"  {line}", file=sys.stderr, flush=True)

    def progress(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last >= self._every or progress.children == progress.total:
            self._last = now
            print(f"  {_summary(progress)}", file=sys.stderr, flush=True)


class Live:
    """A progress bar with the archives' state under it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True, highlight=False)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}", style="dim"),
            console=self._console,
            transient=True,
        )
        self._task: Any = None

    def close(self) -> None:
        """Take the bar away and give the cursor back."""
        self._bar.stop()

    def phase(self, name: str) -> None:
        if self._task is not None:
            self._bar.stop()
            self._bar.remove_task(self._task)
            self._task = None
        self._console.print(_PHASES.get(name, name), style="bold", markup=False)

    def note(self, line: str) -> None:
        self._console.print(f"  {line}", markup=False, style="dim")

    def progress(self, progress: Progress) -> None:
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("  children", total=progress.total, state="")
        self._bar.update(self._task, completed=progress.children, state=_state(progress))
        if progress.children >= progress.total:
            self._bar.stop()
            self._console.print(f"  {_summary(progress)}", markup=False)


_PHASES = {
    "opening": "Opening models and tasks",
    "experts": "Evaluating base and experts",
    "children": "Evolving",
    "validation": "Choosing on validation samples",
    "test": "Measuring finalists on test samples",
}


def _state(progress: Progress) -> str:
    best = " ".join(f"{skill} {score:.2f}" for skill, score in progress.best.items())
    turn = f"{progress.skill}'s turn"
    return f"{turn} · best {best} · average {progress.average:.3f} · {_pace(progress)}"


def _summary(progress: Progress) -> str:
    best = ", ".join(f"{skill} {score:.2f}" for skill, score in progress.best.items())
    return (
        f"{progress.children}/{progress.total} children · best average {progress.average:.3f} · "
        f"best {best} · coverage {progress.coverage:.1%} · QD score {progress.qd_score:.1f} · "
        f"{_pace(progress)}"
    )


def _pace(progress: Progress) -> str:
    if progress.per_minute is None:
        return "…"
    text = f"{progress.per_minute:.0f} children/min"
    if progress.eta_seconds:
        minutes, seconds = divmod(round(progress.eta_seconds), 60)
        hours, minutes = divmod(minutes, 60)
        left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        text += f" · {left} left"
    return text
