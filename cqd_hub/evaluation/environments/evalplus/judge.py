"""Whether what an answer gave is right. Runs outside the sandbox, on reported values."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cqd_hub.evaluation.sandbox import JSON, from_json

from .data import Task

FLOAT_TOLERANCE = 1e-6
RELATIVE = 1e-7

# Accepts (value, arguments, tolerance) beside what equals the expected value.
Oracle = Callable[[Any, Sequence[Any], float], bool]


def _surface_area(value: Any, arguments: Sequence[Any], tolerance: float) -> bool:
    """The height taken as the pyramid's own, not that of its sides."""
    base, height = arguments
    slant = math.sqrt((base / 2) ** 2 + height**2)
    return _number(value) and abs(value - round(base**2 + 2 * base * slant)) <= tolerance


def _digit_distance(value: Any, arguments: Sequence[Any], tolerance: float) -> bool:
    """The shorter number with zeros before it."""
    width = max(len(str(number)) for number in arguments)
    pairs = zip(*(str(number).zfill(width) for number in arguments), strict=True)
    return bool(value == sum(abs(int(first) - int(second)) for first, second in pairs))


def _root(value: Any, arguments: Sequence[Any], tolerance: float) -> bool:
    """Any zero of the polynomial, whichever the reference finds."""
    total = sum(factor * value**power for power, factor in enumerate(arguments[0]))
    return _number(value) and abs(total) <= tolerance


@dataclass(frozen=True)
class Judge:
    """How the values of one task are compared.

    Args:
        view: Of `inside.VIEWS`: what of a value is reported by the reference and by answers.
        also: What is right though it is not the expected value.
        alone: Only *also* decides.
    """

    view: str = "value"
    also: Oracle | None = None
    alone: bool = False

    def right(
        self, value: JSON, expected: JSON, arguments: Sequence[JSON], tolerance: float
    ) -> bool:
        """Compare reported values. *tolerance* is the task's; 0 means `FLOAT_TOLERANCE` for
        floats, and lists and tuples of them, and equality for the rest."""
        try:
            got, wanted = from_json(value), from_json(expected)
            if self.also is not None:
                given = [from_json(item) for item in arguments]
                if self.alone or got != wanted:
                    return self.also(got, given, tolerance)
            if got == wanted:
                return True
            if tolerance == 0 and _floats(wanted):
                tolerance = FLOAT_TOLERANCE
            return tolerance > 0 and type(got) is type(wanted) and _close(got, wanted, tolerance)
        except (TypeError, ValueError, ArithmeticError, RecursionError):
            return False


_EQUAL = Judge()
_SET = Judge(view="set")
_NOT_NONE = Judge(view="not-none")
_JUDGES = {
    ("mbpp", "are_equivalent"): Judge(also=lambda value, arguments, tolerance: True),
    ("mbpp", "sum_div"): Judge(also=lambda value, arguments, tolerance: value == 0),
    ("mbpp", "surface_Area"): Judge(also=_surface_area),
    ("mbpp", "digit_distance_nums"): Judge(also=_digit_distance),
    ("humaneval", "find_zero"): Judge(also=_root, alone=True),
    **{
        ("mbpp", entry): _SET
        for entry in (
            "similar_elements",
            "find_char_long",
            "common_in_nested_lists",
            "extract_singly",
            "larg_nnum",
            "intersection_array",
            "find_dissimilar",
            "Diff",
        )
    },
    **{
        ("mbpp", entry): _NOT_NONE
        for entry in ("check_str", "text_match_three", "text_starta_endb")
    },
}


def judge_of(task: Task) -> Judge:
    """How a task's values are compared (after EvalPlus 0.3.1)."""
    return _JUDGES.get((task.data_set, task.entry), _EQUAL)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _floats(value: Any) -> bool:
    if isinstance(value, list | tuple) and value:
        return all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _close(value: Any, wanted: Any, tolerance: float) -> bool:
    """Numbers, or lists and tuples of them of the same shape, within the tolerance."""
    if isinstance(wanted, list | tuple):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(wanted)
            and all(_close(got, item, tolerance) for got, item in zip(value, wanted, strict=True))
        )
    kinds = int | float | complex
    if not (isinstance(value, kinds) and isinstance(wanted, kinds)):
        return False
    if not cmath.isfinite(wanted):
        return bool(value == wanted)
    return bool(abs(value - wanted) <= tolerance + RELATIVE * abs(wanted))
