"""Whether an answer is right.

v0.2 (and CycleQD) compare exactly; where they `eval` what a model wrote, this reads literals
only, so that ``[1 + 1]`` is no list here. The function-calling rules forgive more.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

_LONGEST = 20_000
_TOLERANCE = 1e-2
_NOTHING = frozenset(
    {"none", "null", "undefined", "nan", "inf", "infinity", "-inf", "-infinity", ""}
)
_ITEM = re.compile(r"""((?:[^,"']|"[^"]*"|'[^']*')+)""")


def _literal(text: str) -> Any:
    """A Python literal.

    Raises:
        ValueError: It is none, or beyond the limits.
    """
    if len(text) > _LONGEST:
        raise ValueError("too long")
    try:
        return ast.literal_eval(text)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("no literal") from error


def right_answer(answer: str, label: Sequence[str]) -> bool:
    """v0.2: one against one as numbers, else as text; several as sets."""
    given: list[Any]
    try:
        given = list(_literal(answer))
    except (ValueError, TypeError):
        given = [answer]
    if len(given) == 1 and len(label) == 1:
        try:
            return float(given[0]) == float(label[0])
        except (ValueError, TypeError, OverflowError):
            return bool(given[0] == label[0])
    try:
        return set(given) == set(label)
    except TypeError:
        return False


def right_answers(answers: Any, label: Sequence[str]) -> bool:
    """Function calling: cleaned; numbers within 0.01, any number of them in any order.

    Args:
        answers: What the model passed, a list or text.
        label: The right ones.
    """
    given, wanted = _cleaned(answers), _cleaned(list(label))
    numbers = [_number(each) for each in given], [_number(each) for each in wanted]
    if len(given) == len(wanted) == 1:
        ours, theirs = numbers[0][0], numbers[1][0]
        if ours is not None and theirs is not None:
            return abs(ours - theirs) <= _TOLERANCE
        return given[0] == wanted[0]
    if None not in numbers[0] and None not in numbers[1]:
        return _matched(numbers[0], numbers[1])
    return set(given) == set(wanted)


def _matched(given: Sequence[float | None], wanted: Sequence[float | None]) -> bool:
    """Whether each number finds one of its own, the first that is near."""
    left = list(wanted)
    if len(given) != len(left):
        return False
    for number in given:
        near = [
            index
            for index, other in enumerate(left)
            if number is not None and other is not None and abs(number - other) <= _TOLERANCE
        ]
        if not near:
            return False
        del left[near[0]]
    return True


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _cleaned(answers: Any) -> list[str]:
    if isinstance(answers, str) and answers.strip().startswith("[") and answers.strip()[-1] == "]":
        inside = answers.strip()
        try:
            answers = _literal(inside)
        except ValueError:
            answers = [item for item in _ITEM.findall(inside[1:-1][:_LONGEST]) if item]
    if not isinstance(answers, list | tuple):
        answers = [answers]
    return [_clean(item) for item in answers]


def _clean(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    text = str(value).strip().strip("'\"").strip()
    if text.endswith("%"):
        return text[:-1].strip()
    if not (text.startswith("[") or text.endswith("]")):
        text = text.replace(",", "")
    return "0" if text.lower() in _NOTHING else text
