"""Numbers and strings as MySQL converts them, and its functions of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from random import Random
from typing import Any

from .sql_text import weight

LONGEST = 1 << 20  # characters of any value
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_INTEGER = re.compile(r"\s*[+-]?\d+")


class MySQLError(Exception):
    """A statement's error in MySQL's wording."""


def number(value: Any) -> Any:
    """A value in a numeric context: text counts by the number it begins with."""
    if value is None or isinstance(value, (int, float)):
        return value
    match = _NUMBER.match(text(value))
    found = float(match[0]) if match else 0.0
    return found if math.isfinite(found) else math.copysign(1.7976931348623157e308, found)


def strict_number(value: Any) -> Any:
    """`number` where MySQL's strict mode refuses text that is not wholly one."""
    if isinstance(value, str):
        match = _NUMBER.match(value)
        if match is None or value[match.end() :].strip(" "):
            raise MySQLError(f"1292 (22007): Truncated incorrect DOUBLE value: '{value[:128]}'")
    return number(value)


def text(value: Any, scale: int | None = None) -> Any:
    """A value in a text context; *scale* is a DECIMAL's number of digits."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if scale is not None:
        return f"{rounded(value, scale):.{scale}f}"
    if isinstance(value, int):
        return str(value)
    return _double(value)


def _double(value: float) -> str:
    if not math.isfinite(value):
        return "0"
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    exact = Decimal(repr(value))
    if -15 <= exact.adjusted() < 15:
        found = f"{exact:f}"
        return found.rstrip("0").rstrip(".") if "." in found else found
    mantissa, _, exponent = f"{exact.normalize():e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def rounded(value: Any, digits: int) -> Decimal:
    """Half away from zero, as DECIMALs are."""
    unit = Decimal(1).scaleb(-max(-30, min(30, digits)))
    try:
        return Decimal(repr(value)).quantize(unit, ROUND_HALF_UP)
    except InvalidOperation:
        return Decimal(repr(value))


def integer(value: Any) -> int:
    """A count or position: numbers are rounded, text is cut."""
    if isinstance(value, str):
        return _clipped(int(match[0]) if (match := _INTEGER.match(value)) else 0)
    return _clipped(int(rounded(value, 0)))


def _clipped(value: int) -> int:
    return max(-(1 << 63), min((1 << 63) - 1, value))


def _signed(value: Any) -> int:
    return integer(text(value) if isinstance(value, bytes) else value)


def _unsigned(value: Any) -> Any:
    found = _signed(value)
    return found if found >= 0 else float(found + (1 << 64))  # SQLite's integers have a sign


def _decimal(value: Any, digits: int) -> Any:
    return float(rounded(number(value), digits))


def rounded_double(value: Any, digits: Any = 0, exact: int = 0) -> Any:
    value, digits = number(value), max(-30, min(30, integer(digits)))
    if isinstance(value, int) and digits >= 0:
        return value
    if exact or isinstance(value, int):
        found = rounded(value, digits)
        return int(found) if isinstance(value, int) else float(found)
    factor = 10.0 ** abs(digits)
    found = round(value * factor) / factor if digits >= 0 else round(value / factor) * factor
    return float(found) if math.isfinite(found) else value


def _truncate(value: Any, digits: Any) -> Any:
    value, digits = number(value), max(-30, min(30, integer(digits)))
    if isinstance(value, int) and digits >= 0:
        return value
    factor = Decimal(10) ** digits
    found = int(Decimal(repr(value)) * factor) / factor
    return int(found) if isinstance(value, int) else float(found)


def divide(one: Any, other: Any) -> Any:
    one, other = number(one), number(other)
    return None if not other else one / other


def _whole(one: Any, other: Any) -> Any:
    one, other = number(one), number(other)
    return None if not other else _clipped(int(Decimal(repr(one)) / Decimal(repr(other))))


def _modulo(one: Any, other: Any) -> Any:
    one, other = number(one), number(other)
    if not other:
        return None
    if isinstance(one, int) and isinstance(other, int):
        return int(math.fmod(one, other)) if abs(one) < 1 << 53 else one % other
    return float(Decimal(repr(one)) % Decimal(repr(other)))


def _real(function: Callable[..., float]) -> Callable[..., Any]:
    def call(*values: Any) -> Any:
        try:
            found = function(*(float(number(value)) for value in values))
        except (ValueError, OverflowError, ZeroDivisionError):
            return None
        return found if isinstance(found, (int, float)) and math.isfinite(found) else None

    return call


def _log(value: float, base: float | None = None) -> float:
    return math.log(value) if base is None else math.log(base) / math.log(value)


def _edge(pick: Callable[..., Any]) -> Callable[..., Any]:
    def call(*values: Any) -> Any:
        if all(isinstance(value, (int, float)) for value in values):
            return pick(values)
        return pick(values, key=lambda value: weight(text(value)))

    return call


def randomness(seed: int) -> Callable[..., float]:
    """RAND(): the same numbers for the same statements."""
    source = Random(seed)

    def call(*values: Any) -> float:
        return Random(integer(values[0] or 0)).random() if values else source.random()

    return call


# Of numbers; of these a NULL among the arguments is the result.
PLAIN: dict[str, Callable[..., Any]] = {
    "num": number, "snum": strict_number, "str": text, "signed": _signed, "unsigned": _unsigned,
    "decimal": _decimal, "round": rounded_double, "truncate": _truncate, "div": divide,
    "whole": _whole, "mod": _modulo, "fmod": _real(lambda one, other: math.fmod(one, other) + 0.0),
    "abs": lambda value: abs(number(value)),
    "ceil": lambda value: _ceiling(number(value), math.ceil),
    "floor": lambda value: _ceiling(number(value), math.floor),
    "sign": lambda value: (number(value) > 0) - (number(value) < 0),
    "sqrt": _real(math.sqrt), "pow": _real(math.pow), "exp": _real(math.exp), "ln": _real(math.log),
    "log": _real(_log), "log2": _real(math.log2), "log10": _real(math.log10),
    "sin": _real(math.sin), "cos": _real(math.cos), "tan": _real(math.tan),
    "asin": _real(math.asin), "acos": _real(math.acos), "atan": _real(math.atan),
    "atan2": _real(math.atan2), "radians": _real(math.radians), "degrees": _real(math.degrees),
    "cot": _real(lambda value: 1 / math.tan(value)), "pi": lambda: math.pi,
    "greatest": _edge(max), "least": _edge(min),
    "xor": lambda one, other: int(bool(number(one)) != bool(number(other))),
    "bits": lambda value: integer(number(value)),
}  # fmt: skip


def _ceiling(value: Any, function: Callable[[float], int]) -> Any:
    if isinstance(value, int):
        return value
    return float(function(value)) if abs(value) < 1e300 else value
