"""One problem with its scripts as text, as a sample carries it."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator, model_validator

from cqd_hub.recipe import Strict


class Script(Strict):
    """*code* in *language*; where the code is not at hand, the name of a check in `stock`."""

    language: Literal["bash", "python"] = "bash"
    code: str
    stock: str = ""


class Match(Strict):
    """An expected *answer*, or a *regex* to be found in it."""

    answer: str | None = None
    regex: str | None = None
    strip: bool = True

    @field_validator("regex")
    @classmethod
    def _readable(cls, regex: str | None) -> str | None:
        try:
            re.compile(regex or "")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return regex

    @model_validator(mode="after")
    def _something(self) -> Match:
        if self.answer is None and self.regex is None:
            raise ValueError("match: needs answer or regex")
        return self


class Problem(Strict):
    """What is set up, asked and judged.

    Attributes:
        init: Scripts of their own, run before the model's turn.
        start: A command for the shell, run after them.
        match, check, example: How it is judged: `match`, or the scripts `check` (None: `example`).
        image: Of the machine, as upstream names them.
    """

    description: str
    init: tuple[Script, ...] = ()
    start: str | None = None
    match: Match | None = None
    check: tuple[Script | None, ...] = ()
    example: Script | None = None
    image: str = "default"

    @model_validator(mode="after")
    def _judged(self) -> Problem:
        if self.match is None and not self.check:
            raise ValueError("evaluation: needs match or check")
        return self

    @property
    def wants_answer(self) -> bool:
        """Whether an answer is compared with something, rather than what was done looked at."""
        return self.match is not None or None in self.check
