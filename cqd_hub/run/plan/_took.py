"""What a run took, kept beside what was planned: `plan.json` of the run directory."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from cqd_hub.errors import RunError
from cqd_hub.files import write_atomic
from cqd_hub.run.plan._predict import Plan

FILE = "plan.json"


class Counted(Protocol):
    """What evaluates children."""

    @property
    def evaluated(self) -> int:
        """How many, so far."""
        ...


class Took:
    """Writes down a plan, and at the end of each session what it took.

    Args:
        folder: The run directory.
        plan: The first session's; None for what that wrote down.
        here: Whether this process does the work, so that its memory is the run's.
    """

    def __init__(self, folder: Path, plan: Plan | None, *, here: bool) -> None:
        self._path, self._folder, self._here = folder / FILE, folder, here
        known = _read(self._path) or {"plan": {}, "took": {}}
        self._content = known if plan is None else {"plan": plan.record(), "took": {}}
        if plan is not None:
            self._write()

    @contextmanager
    def children(self, counted: Counted) -> Iterator[None]:
        """Keep the time of the block, and how many children it evaluates."""
        began = time.monotonic()
        try:
            yield
        finally:
            took = self._content["took"]
            took["children"] = took.get("children", 0) + counted.evaluated
            took["seconds"] = took.get("seconds", 0.0) + time.monotonic() - began

    def close(self) -> None:
        """Note the peaks and write everything; a full disk loses nothing but this."""
        took = self._content["took"]
        if self._here:
            self._note_memory(took)
        took["disk"] = sum(
            path.stat().st_size for path in self._folder.rglob("*") if path.is_file()
        )
        with suppress(RunError):
            self._write()

    def _note_memory(self, took: dict[str, Any]) -> None:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        took["host"] = max(took.get("host", 0), peak)
        if self._content["plan"].get("device", "").startswith("cuda"):
            import torch

            took["device"] = max(took.get("device", 0), torch.cuda.max_memory_reserved())

    def _write(self) -> None:
        write_atomic(self._path, json.dumps(self._content, indent=2) + "\n")


def is_planned(folder: Path) -> bool:
    """Whether an earlier session wrote a plan down."""
    return _read(folder / FILE) is not None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if {"plan", "took"} <= content.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
