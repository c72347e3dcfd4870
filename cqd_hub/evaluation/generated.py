"""What generating an individual's answers took."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from cqd_hub.evaluation.engine import Reply


@dataclass
class Generated:
    """Counts over the answers that an engine generated; log-likelihoods are none.

    Args:
        answers: How many.
        tokens: Of the answers, their ends included.
        drafted: Tokens of these that were accepted from a draft.
        passes: Forward passes, the prompts' included, summed over the answers (which share them).
    """

    answers: int = 0
    tokens: int = 0
    drafted: int = 0
    passes: int = 0

    def note(self, future: asyncio.Future[Reply]) -> None:
        """Count a reply, if one came."""
        if future.cancelled() or future.exception() is not None:
            return
        reply = future.result()
        if reply.finish == "scored":
            return
        self.answers += 1
        self.tokens += len(reply.tokens)
        self.drafted += reply.drafted
        self.passes += reply.passes
