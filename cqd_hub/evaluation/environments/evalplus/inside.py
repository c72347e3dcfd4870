"""Run an answer against inputs, inside the sandbox; sent there as text behind `sanitise`.

Nothing here is to be trusted once the answer has run: what it reports is compared outside, where
the expected values are. Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import ast
import io
import math
import os
import signal
import sys
import time
import types
from collections.abc import Callable
from typing import Any


class Undefined(Exception):
    """The answer defines no such function."""


class TimeLimit(BaseException):
    """One input took more CPU time than it may."""


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


VIEWS: dict[str, Callable[[Any], Any]] = {
    "value": lambda value: value,
    "not-none": lambda value: value if isinstance(value, bool) else value is not None,
    "set": set,
}


class Answer:
    """A program, loaded once, and its function.

    Args:
        program: Its text.
        entry: The function's name.
        view: Of `VIEWS`: what of a value is reported.
        seconds: CPU time of one input, and of loading.
        more: Inputs with another limit, by number (as text).
        timed: Report ``[value, CPU seconds]``.

    Raises:
        Undefined: The program defines no *entry*.
    """

    def __init__(
        self,
        program: str,
        entry: str,
        view: str = "value",
        seconds: float = 4.0,
        more: dict[str, float] | None = None,
        timed: bool = False,
    ) -> None:
        self.view, self.seconds, self.more, self.timed = VIEWS[view], seconds, more or {}, timed
        self.spent = False
        self.module = sys.modules["solution"] = types.ModuleType("solution")
        sys.stdout = sys.stderr = _Nowhere()  # what it prints is no part of its verdict
        signal.signal(signal.SIGPROF, self._end)
        self.within(lambda: exec(compile(program, "solution.py", "exec"), self.module.__dict__))  # noqa: S102
        if entry not in self.module.__dict__:
            raise Undefined(f"the answer defines no {entry}")
        self.function = self.module.__dict__[entry]

    def _end(self, *signalled: Any) -> None:
        if self.spent and signalled:  # it caught the first one
            os._exit(1)
        self.spent = True
        raise TimeLimit("over the CPU limit of one input")

    def within(self, act: Callable[[], Any], seconds: float | None = None) -> Any:
        """Do it, unless it or something before took too long."""
        if self.spent:
            self._end()
        signal.setitimer(signal.ITIMER_PROF, seconds or self.seconds, 0.5)
        try:
            return act()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def call(self, number: int, *arguments: Any) -> Any:
        """What the view shows of the value for input *number*."""
        began = time.process_time()
        value = self.within(lambda: self.function(*arguments), self.more.get(str(number)))
        took = time.process_time() - began
        return [self.view(value), took] if self.timed else self.view(value)

    def failures(self, assertions: list[str]) -> list[list[str]]:
        """Of *assertions* on the function, those that fail: ``[assertion, what it gives]``."""
        return [[text, remark] for text in assertions if (remark := self._fault(text)) is not None]

    def _fault(self, assertion: str) -> str | None:
        names = {"math": math, **self.module.__dict__}
        test = ast.parse(assertion).body[0].test  # type: ignore[attr-defined]
        try:
            self.within(lambda: exec(assertion, dict(names)))  # noqa: S102
        except AssertionError:
            if not (isinstance(test, ast.Compare) and len(test.ops) == 1):
                return "fails"
            code = compile(ast.Expression(test.left), "assertion", "eval")
            try:
                return f"left: {self.within(lambda: eval(code, names))!r}"[:300]  # noqa: S307
            except BaseException:
                return "fails"
        except BaseException as error:
            return f"raises {type(error).__name__}: {error}"[:300]
        return None
