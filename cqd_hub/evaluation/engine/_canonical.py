"""The sequential path within an engine that has a faster one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine._interface import Candidate, Engine, Reply, Request

Submit = Callable[[Candidate, Request], asyncio.Future[Reply]]


class Canonical:
    """Answers on the sequential path of an engine, while that is open.

    Args:
        engine: It.
        submit: Its `Engine.submit`, on that path.
        path: See `Engine.path`.
    """

    def __init__(self, engine: Engine, submit: Submit, path: str) -> None:
        self._engine, self.submit, self.path = engine, submit, path

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        return self._engine.tokenizer

    @property
    def canonical(self) -> Canonical:
        """Itself."""
        return self

    def misfit(self, request: Request) -> UserError | None:
        """See `Engine.misfit`."""
        return self._engine.misfit(request)
