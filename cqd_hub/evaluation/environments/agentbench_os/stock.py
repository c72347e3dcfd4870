"""The check scripts that every data file names, compared here.

A script gets the answer and what the reference command printed. Upstream these are Python programs
run in the machine; the comparison needs nothing of the machine, so it is made outside, where no
agent reaches it, with the same verdicts. A checkout's own are known by their text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

_UNITS = {"B": 0, "Byte": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def _text(value: str) -> str:
    return value.replace("\r\n", "\n").replace("\r", "\n").strip()


def _size(value: str) -> int:
    """Bytes of a whole number with a unit. As upstream, `4.0K` and `4KB` are unreadable."""
    value = value.strip()
    for unit, power in _UNITS.items():
        if value.endswith(unit):
            return int(value[: -len(unit)]) * 1024**power
    return int(value)


_CHECKS: dict[str, Callable[[str, str], bool]] = {
    "integer-match": lambda answer, reference: int(answer) == int(reference),
    "string-match": lambda answer, reference: _text(answer) == _text(reference),
    "containing": lambda answer, reference: _text(reference) in _text(answer),
    "in": lambda answer, reference: _text(answer) in _text(reference),
    "size-match": lambda answer, reference: _size(answer) == _size(reference),
}
NAMES = frozenset(_CHECKS)

# Digest of the text without white space → what it compares: all that AgentBench has published.
_BY_TEXT = {
    "3c5fdf2dd85886d5": "integer-match",
    "a439e2d8a0db5c8a": "integer-match",  # prints the reference, too
    "d7de0b46e8e7e6d3": "string-match",
    "2f5974391e602aa4": "containing",
    "ccf634536979eed3": "in",
    "6b447cb9cc6ec5da": "size-match",
}


def name_of(code: str) -> str:
    """The stock check whose Python text *code* is, or empty."""
    text = "".join(code.split())
    return _BY_TEXT.get(hashlib.sha256(text.encode()).hexdigest()[:16], "")


def accepts(name: str, parameters: Sequence[str]) -> bool:
    """Whether stock check *name* passes *parameters*: the answer, then the reference's output.

    What a script upstream crashes over (a number that is none, no reference) does not pass.
    """
    if len(parameters) < 2:
        return False
    try:
        return _CHECKS[name](parameters[0], parameters[1])
    except ValueError:
        return False
