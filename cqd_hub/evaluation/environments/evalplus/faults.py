"""Tasks of the public files whose tests cannot be judged, each with the reason."""

from __future__ import annotations

from .data import TestSet

FAULTS: dict[tuple[str, TestSet], str] = {
    ("Mbpp/255", "plus"): "the canonical solution's output for some plus inputs (combinations of "
    "many colours) is larger than any memory limit of ours",
}


def fault_of(task: str, tests: TestSet) -> str:
    """What is known to be wrong with a task when these tests count, else empty."""
    return FAULTS.get((task, tests), "")
