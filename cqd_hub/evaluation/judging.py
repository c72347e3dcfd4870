"""Executing answers that are programs, once each, and counting what execution takes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cqd_hub.evaluation.execution import Execution, judge
from cqd_hub.evaluation.sandbox import Sandbox


class Verdicts:
    """Answers already judged, by (skill, sample, text): they are never executed again."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, bytes], tuple[float, str]] = {}
        self.reused = 0

    def remember(self, skill: str, sample: str, text: str, score: float, note: str) -> None:
        """Keep a verdict."""
        self._known[self._key(skill, sample, text)] = (score, note)

    def find(self, skill: str, sample: str, text: str) -> tuple[float, str] | None:
        """Return score and note, or None."""
        verdict = self._known.get(self._key(skill, sample, text))
        self.reused += verdict is not None
        return verdict

    @staticmethod
    def _key(skill: str, sample: str, text: str) -> tuple[str, str, bytes]:
        return skill, sample, hashlib.sha256(text.encode(errors="surrogatepass")).digest()


class Judge:
    """Executes what individuals say, and keeps the time.

    Args:
        sandbox: Open; None where no skill's answers are programs.
        verdicts: What was judged before.

    Attributes:
        executed: Answers and turns that were executed.
        seconds: Wall time during which at least one was.
    """

    def __init__(self, sandbox: Sandbox | None, verdicts: Verdicts) -> None:
        self.sandbox, self.verdicts = sandbox, verdicts
        self.executed, self.seconds = 0, 0.0
        self._under_way, self._since = 0, 0.0

    async def judge(
        self, skill: str, sample: str, execution: Execution, document: Mapping[str, Any], text: str
    ) -> tuple[float, str]:
        """Score and note of one answer.

        Raises:
            RunError: The sandbox failed; the answer has no verdict.
        """
        known = self.verdicts.find(skill, sample, text)
        if known is not None:
            return known
        assert self.sandbox is not None
        with self.executing():
            outcome = await self.sandbox.run(execution.program(document, text))
        self.executed += 1
        score, note = judge(execution, document, outcome)
        self.verdicts.remember(skill, sample, text, score, note)
        return score, note

    @contextmanager
    def executing(self) -> Iterator[None]:
        """Count the wall time during which at least one such block is open."""
        if self._under_way == 0:
            self._since = time.perf_counter()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if self._under_way == 0:
                self.seconds += time.perf_counter() - self._since
