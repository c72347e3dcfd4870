"""Publishing while a run goes on: a process of its own, which can neither hold it up nor end it.

Each push is the command that a person would give. It reads the journal for itself; where the Hub is
away it gives up, and the next one, the one at the end or `cqd-hub push` brings the rest.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from cqd_hub.hub.client import HubAway
from cqd_hub.publish.push import check_target
from cqd_hub.run.progress import Observer, Progress

PATIENCE = 60.0  # seconds that an absent Hub may hold up beginning and end of a run, per wait
MINUTES = 10.0


class Uploader:
    """Starts pushes of one run, one at a time.

    Args:
        folder: The run directory.
        to: ``ns/name`` of the archive.
        every: Children from one push to the next.
        minutes: Or minutes; 10 unless one of the two is given.
        options: More options of `cqd-hub push`.
        note: Called with a line for what became of a push.
    """

    def __init__(
        self,
        folder: Path,
        to: str,
        *,
        every: int | None = None,
        minutes: float | None = None,
        options: Sequence[str] = (),
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._folder, self._to, self._options, self._note = folder, to, tuple(options), note
        self._every = every
        self._minutes = MINUTES if every is None and minutes is None else minutes
        # As it is now: a run may go offline for itself later.
        self._environment = dict(os.environ)
        self._last: tuple[int | None, float] = (None, time.monotonic())
        self._running: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> str:
        """What brings the rest."""
        words = ["cqd-hub", "push", str(self._folder), "--to", self._to, *self._options]
        return shlex.join(words)

    @property
    def running(self) -> bool:
        """Whether a push has begun whose end was not noted yet."""
        return self._running is not None

    def check(self) -> None:
        """Before the run: whether this token may write there. An absent Hub is only noted.

        Raises:
            UserError: It may not, or the name is illegal.
        """
        try:
            check_target(self._to, patience=PATIENCE, note=self._note)
        except HubAway as error:
            self._note(f"nothing is published for now: {error.what}")

    def children(self, count: int) -> None:
        """So many are evaluated: begin a push if it is time and none is running."""
        known, since = self._last
        if known is None:
            self._last = known, since = count, since
        self._collect()
        if self._running is not None or count <= known:
            return
        enough = self._every is not None and count - known >= self._every
        late = self._minutes is not None and time.monotonic() - since >= 60 * self._minutes
        if enough or late:
            self._last = (count, time.monotonic())
            self._start()

    def finish(self, output: TextIO, *, quiet: bool = False) -> bool:
        """After the run: publish all, elites included; whether that worked.

        A Hub that is away holds this up for at most `PATIENCE` for a push that is still running,
        and as long for the last one's first answer.
        """
        if self._running is not None:
            try:
                self._running.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._running.terminate()  # safe at any time: the next one completes it
                self._running.wait()
            self._running = None
        environment = {"CQD_HUB_PATIENCE": str(PATIENCE)} | self._environment
        words = [*self._words(), *self._options, *(["--quiet"] if quiet else [])]
        try:
            done = subprocess.run(words, env=environment, stdout=output, stderr=output, check=False)
            complete = done.returncode == 0
        except (OSError, KeyboardInterrupt):
            complete = False
        if not complete:
            print(f"not all is published; to publish the rest: {self.command}", file=output)
        return complete

    def _words(self) -> list[str]:
        program = [sys.executable, "-m", "cqd_hub.cli.app", "push", str(self._folder)]
        return [*program, "--to", self._to]

    def _start(self) -> None:
        accepting = [word for word in self._options if word == "--accept-licence"]
        try:
            (self._folder / ".push").mkdir(exist_ok=True)
            with self._log.open("wb") as log:
                self._running = subprocess.Popen(
                    [*self._words(), "--elites", "none", *accepting],
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is meant for the run
                )
        except OSError as error:
            self._note(f"nothing is published for now: {error.strerror}")

    def _collect(self) -> None:
        if self._running is None or self._running.poll() is None:
            return
        if self._running.returncode == 0:
            self._note(f"published as far as it was: {self._to}")
        else:
            said = ""
            with contextlib.suppress(OSError):
                said = self._log.read_text(encoding="utf-8", errors="replace").strip()
            last = said.splitlines()[-1] if said else f"exit code {self._running.returncode}"
            self._note(f"nothing is published for now: {last[:300]}")
        self._running = None

    @property
    def _log(self) -> Path:
        return self._folder / ".push" / "log.txt"


class Publishing:
    """An observer that passes everything on, and counts children for an uploader.

    Args:
        observer: Who else observes.
        uploader: Told how many children there are.
    """

    def __init__(self, observer: Observer, uploader: Uploader) -> None:
        self._observer, self._uploader = observer, uploader

    def phase(self, name: str) -> None:
        """Pass on."""
        self._observer.phase(name)

    def note(self, line: str) -> None:
        """Pass on."""
        self._observer.note(line)

    def progress(self, progress: Progress) -> None:
        """Pass on, and count."""
        self._observer.progress(progress)
        self._uploader.children(progress.children)

    def measured(self, done: int, total: int) -> None:
        """Pass on."""
        self._observer.measured(done, total)
