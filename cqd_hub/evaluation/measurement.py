"""The record of one answer."""

from __future__ import annotations

from dataclasses import dataclass

from cqd_hub.recipe import Split

# How an answer ends, and the note on it, when the individual's weights give no finite numbers: it
# scores 0, whatever the task.
NO_NUMBERS = "nan"
NO_NUMBERS_NOTE = "the individual gives no finite numbers"


@dataclass(frozen=True)
class Measurement:
    """One answer of one individual to one sample, and its score (0..1, higher is better)."""

    skill: str
    split: Split
    sample: str
    score: float
    text: str
    tokens: tuple[int, ...] = ()
    finish: str = ""
    repeat: int = 0
    path: str = ""
    note: str = ""
