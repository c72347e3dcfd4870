"""The run's own log file: every event with its time."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cqd_hub.run.progress import Observer, Progress


class Logged:
    """Appends events to ``log.txt`` in the run directory and passes them on."""

    def __init__(self, observer: Observer, folder: Path) -> None:
        self._observer, self._path = observer, folder / "log.txt"

    def phase(self, name: str) -> None:
        """Log and pass on."""
        self._write(f"phase {name}")
        self._observer.phase(name)

    def note(self, line: str) -> None:
        """Log and pass on."""
        self._write(line)
        self._observer.note(line)

    def progress(self, progress: Progress) -> None:
        """Log and pass on."""
        best = " ".join(
            f"{skill}={score:.3f}/{progress.mean[skill]:.3f}"
            for skill, score in progress.best.items()
        )
        self._write(
            f"child {progress.children}/{progress.total} skill={progress.skill} {best} "
            f"average={progress.average:.4f} coverage={progress.coverage:.4f} "
            f"qd={progress.qd_score:.3f}"
        )
        self._observer.progress(progress)

    def measured(self, done: int, total: int) -> None:
        """Log and pass on."""
        self._write(f"individual {done}/{total}")
        self._observer.measured(done, total)

    def _write(self, line: str) -> None:
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        # A log that cannot be written must not end the run; the journal says so when it matters.
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{stamp} {line}\n")
