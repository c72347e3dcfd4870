"""Numbers and strings as MySQL converts them, and its functions of them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
import zlib
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from random import Random
from typing import Any

from .sql_text import like, regexp, weight

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


def _round(value: Any, digits: Any = 0, exact: int = 0) -> Any:
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


# strings


def _longest(value: str) -> str:
    if len(value) > LONGEST:
        raise MySQLError("1301 (HY000): Result was larger than max_allowed_packet")
    return value


def _left(value: Any, count: Any) -> str:
    return text(value)[: max(0, integer(count))]


def _right(value: Any, count: Any) -> str:
    found = text(value)
    return found[max(0, len(found) - max(0, integer(count))) :]


def _substring(value: Any, start: Any, length: Any = None) -> str:
    found, start = text(value), integer(start)
    if start == 0 or -start > len(found):
        return ""
    begin = start - 1 if start > 0 else len(found) + start
    return found[begin:] if length is None else found[begin : begin + max(0, integer(length))]


def _substring_index(value: Any, mark: Any, count: Any) -> str:
    found, mark, count = text(value), text(mark), integer(count)
    if not mark or not count:
        return ""
    parts = found.split(mark)
    return mark.join(parts[:count] if count > 0 else parts[count:])


def _locate(mark: Any, value: Any, start: Any = 1) -> int:
    mark, found, begin = text(mark), text(value), integer(start) - 1
    if begin < 0 or begin > len(found):
        return 0
    letters = [weight(letter) for letter in found]
    wanted = [weight(letter) for letter in mark]
    for place in range(begin, len(letters) - len(wanted) + 1):
        if letters[place : place + len(wanted)] == wanted:
            return place + 1
    return 0


def _pad(value: Any, length: Any, fill: Any, left: bool) -> Any:
    found, size, fill = text(value), integer(length), text(fill)
    if size < 0:
        return None
    if size <= len(found):
        return found[:size]
    if not fill:
        return ""
    if size > LONGEST:
        return None
    more = (fill * (size // len(fill) + 1))[: size - len(found)]
    return more + found if left else found + more


def _repeat(value: Any, count: Any) -> Any:
    found, count = text(value), max(0, integer(count))
    return None if len(found) * count > LONGEST else found * count


def _cased(value: Any, change: Callable[[str], str]) -> str:
    """Letter by letter: one that would become two stays."""
    found = text(value)
    if found.isascii():
        return change(found)
    return "".join(new if len(new := change(letter)) == 1 else letter for letter in found)


def _trim(value: Any, where: str = "both", mark: Any = " ") -> str:
    found, mark = text(value), text(mark)
    if not mark:
        return found
    start, end = 0, len(found)
    if where != "trailing":
        while found.startswith(mark, start, end):
            start += len(mark)
    if where != "leading":
        while found.endswith(mark, start, end) and end > start:
            end -= len(mark)
    return found[start:end]


def _replace(value: Any, old: Any, new: Any) -> str:
    found, old, new = text(value), text(old), text(new)
    if not old:
        return found
    if len(found) + found.count(old) * (len(new) - len(old)) > LONGEST:
        return _longest(" " * (LONGEST + 1))
    return found.replace(old, new)


def _insert(value: Any, start: Any, length: Any, new: Any) -> str:
    found, begin, length = text(value), integer(start) - 1, integer(length)
    if not 0 <= begin < len(found):
        return found
    end = len(found) if length < 0 else begin + length
    return found[:begin] + text(new) + found[end:]


def _concat(*values: Any) -> str:
    return _longest("".join([text(value) for value in values]))


def _concat_ws(mark: Any, *values: Any) -> Any:
    if mark is None:
        return None
    return _longest(text(mark).join([text(value) for value in values if value is not None]))


def _field(value: Any, *values: Any) -> int:
    if value is None:
        return 0
    numbers = all(isinstance(item, (int, float)) for item in (value, *values) if item is not None)
    key: Callable[[Any], Any] = number if numbers else lambda item: weight(text(item))
    for place, item in enumerate(values):
        if item is not None and key(item) == key(value):
            return place + 1
    return 0


def _find_in_set(value: Any, values: Any) -> int:
    wanted = weight(text(value))
    for place, item in enumerate(text(values).split(",") if text(values) else ()):
        if weight(item) == wanted:
            return place + 1
    return 0


def _elt(place: Any, *values: Any) -> Any:
    place = integer(place) if place is not None else 0
    return values[place - 1] if 0 < place <= len(values) else None


def _strcmp(one: Any, other: Any) -> int:
    first, second = weight(text(one)), weight(text(other))
    return (first > second) - (first < second)


def _format(value: Any, digits: Any, exact: int = 0) -> str:
    digits = max(0, min(30, integer(digits)))
    found = rounded(number(value), digits) if exact else _round(value, digits)
    return f"{found:,.{digits}f}"


def _hex(value: Any) -> str:
    if isinstance(value, (int, float)):
        return f"{integer(value) & (1 << 64) - 1:X}"
    return _bytes(value).hex().upper()


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else text(value).encode("utf-8", "replace")


def _unhex(value: Any) -> Any:
    found = text(value)
    try:
        return bytes.fromhex("0" * (len(found) % 2) + found).decode("utf-8", "replace")
    except ValueError:
        return None


def _conv(value: Any, old: Any, new: Any) -> Any:
    old, new = abs(integer(old)), abs(integer(new))
    if not (2 <= old <= 36 and 2 <= new <= 36):
        return None
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    total = 0
    for letter in text(value).strip().lower():
        place = digits.find(letter)
        if not 0 <= place < old:
            break
        total = total * old + place
    total &= (1 << 64) - 1
    found = ""
    while total:
        total, rest = divmod(total, new)
        found = digits[rest] + found
    return found.upper() or "0"


def _soundex(value: Any) -> str:
    codes = {letter: str(code) for code, group in enumerate(
        ("bfpv", "cgjkqsxz", "dt", "l", "mn", "r"), 1) for letter in group}  # fmt: skip
    found, last = "", ""
    for letter in text(value).lower():
        if not letter.isalpha():
            continue
        code = codes.get(letter, "")
        if not found:
            found = letter.upper()
        elif letter in "aeiouyhw" or not code:
            continue
        elif code != last:
            found += code
        last = code or last
    return found.ljust(4, "0") if found else ""


def _from_base64(value: Any) -> Any:
    try:
        return base64.b64decode(text(value), validate=False).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return None


def _pattern(pattern: Any) -> re.Pattern[str]:
    try:
        return regexp(text(pattern))
    except (re.error, OverflowError, RecursionError) as error:
        detail = str(error)[:100]
        raise MySQLError(f"1139 (42000): Got error '{detail}' from regexp") from None


def _regexp(value: Any, pattern: Any, *_: Any) -> int:
    return int(_pattern(pattern).search(text(value)) is not None)


def _regexp_replace(value: Any, pattern: Any, new: Any, *_: Any) -> str:
    new = re.sub(r"\\(\d)|\$(\d)", lambda match: f"\\g<{match[1] or match[2]}>", text(new))
    try:
        return _longest(_pattern(pattern).sub(new, text(value)))
    except (re.error, IndexError) as error:
        raise MySQLError(f"1139 (42000): Got error '{error}' from regexp") from None


def _regexp_substr(value: Any, pattern: Any, *_: Any) -> Any:
    match = _pattern(pattern).search(text(value))
    return match[0] if match else None


def _regexp_instr(value: Any, pattern: Any, *_: Any) -> int:
    match = _pattern(pattern).search(text(value))
    return match.start() + 1 if match else 0


def _like(value: Any, pattern: Any, escape: Any = "\\", exact: bool = False) -> int:
    return int(like(text(value), text(pattern), text(escape), exact))


def _like_binary(value: Any, pattern: Any, escape: Any = "\\") -> int:
    return _like(value, pattern, escape, exact=True)


def _key(*values: Any) -> Any:
    """One value for several, so that they can be counted as distinct together."""
    if any(value is None for value in values):
        return None
    return "\x1f".join(weight(text(value)) for value in values)


def _ascii(value: Any) -> int:
    found = _bytes(value)
    return found[0] if found else 0


def _ord(value: Any) -> int:
    found = text(value)[:1].encode("utf-8", "replace")
    return int.from_bytes(found, "big")


def _char(*values: Any) -> str:
    codes = [integer(value) & 0xFFFFFFFF for value in values if value is not None]
    data = b"".join(code.to_bytes(max(1, (code.bit_length() + 7) // 8), "big") for code in codes)
    return data.decode("utf-8", "replace")


def _sha2(value: Any, bits: Any) -> Any:
    name = {0: "sha256", 224: "sha224", 256: "sha256", 384: "sha384", 512: "sha512"}.get(
        integer(bits)
    )
    return hashlib.new(name, _bytes(value)).hexdigest() if name else None


def randomness(seed: int) -> Callable[..., float]:
    """RAND(): the same numbers for the same statements."""
    source = Random(seed)

    def call(*values: Any) -> float:
        return Random(integer(values[0] or 0)).random() if values else source.random()

    return call


# Of these a NULL among the arguments is the result.
PLAIN: dict[str, Callable[..., Any]] = {
    "num": number, "snum": strict_number, "str": text, "signed": _signed, "unsigned": _unsigned,
    "decimal": _decimal, "round": _round, "truncate": _truncate, "div": divide, "whole": _whole,
    "mod": _modulo, "fmod": _real(lambda one, other: math.fmod(one, other) + 0.0),
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
    "length": lambda value: len(_bytes(value)), "char_length": lambda value: len(text(value)),
    "bit_length": lambda value: 8 * len(_bytes(value)),
    "left": _left, "right": _right, "substring": _substring, "substring_index": _substring_index,
    "upper": lambda value: _cased(value, str.upper),
    "lower": lambda value: _cased(value, str.lower),
    "locate": _locate, "instr": lambda value, mark: _locate(mark, value),
    "lpad": lambda value, size, fill=" ": _pad(value, size, fill, True),
    "rpad": lambda value, size, fill=" ": _pad(value, size, fill, False),
    "repeat": _repeat, "space": lambda count: _repeat(" ", count),
    "reverse": lambda value: text(value)[::-1], "trim": _trim,
    "ltrim": lambda value: _trim(value, "leading"), "rtrim": lambda value: _trim(value, "trailing"),
    "replace": _replace, "insert": _insert, "concat": _concat, "strcmp": _strcmp,
    "find_in_set": _find_in_set, "format": _format, "hex": _hex, "unhex": _unhex, "conv": _conv,
    "bin": lambda value: _conv(integer(value), 10, 2),
    "oct": lambda value: _conv(integer(value), 10, 8),
    "soundex": _soundex, "ascii": _ascii, "ord": _ord, "quote": lambda value: repr(text(value)),
    "md5": lambda value: hashlib.md5(_bytes(value), usedforsecurity=False).hexdigest(),
    "sha1": lambda value: hashlib.sha1(_bytes(value), usedforsecurity=False).hexdigest(),
    "sha2": _sha2, "crc32": lambda value: zlib.crc32(_bytes(value)),
    "to_base64": lambda value: base64.b64encode(_bytes(value)).decode(),
    "from_base64": _from_base64, "like": _like,
    "like_binary": _like_binary, "regexp": _regexp,
    "regexp_replace": _regexp_replace, "regexp_substr": _regexp_substr,
    "regexp_instr": _regexp_instr,
    "xor": lambda one, other: int(bool(number(one)) != bool(number(other))),
    "bits": lambda value: integer(number(value)),
}  # fmt: skip
# These see NULLs.
WITH_NULLS: dict[str, Callable[..., Any]] = {
    "concat_ws": _concat_ws, "field": _field, "elt": _elt, "char": _char, "key": _key,
}  # fmt: skip


def _ceiling(value: Any, function: Callable[[float], int]) -> Any:
    if isinstance(value, int):
        return value
    return float(function(value)) if abs(value) < 1e300 else value


class GroupConcat:
    """GROUP_CONCAT(value, separator, distinct, most, key, descending, ...)."""

    def __init__(self) -> None:
        self.found: list[tuple[list[tuple[Any, int]], str]] = []
        self.separator, self.distinct, self.most, self.size = ",", 0, 1024, 0

    def step(self, value: Any, separator: Any, distinct: int, most: int, *keys: Any) -> None:
        self.separator, self.distinct, self.most = text(separator), distinct, most
        if value is not None and self.size <= LONGEST:
            shown = text(value)
            self.size += len(shown)
            order = list(zip(keys[::2], keys[1::2], strict=True))
            self.found.append((order, shown))

    def finalize(self) -> Any:
        found = self.found
        for place in reversed(range(len(found[0][0]) if found else 0)):
            found.sort(
                key=lambda item: _sorting(item[0][place][0]),
                reverse=bool(found[0][0][place][1]),
            )
        shown = [item[1] for item in found]
        if self.distinct:
            shown = list({weight(item): item for item in reversed(shown)}.values())[::-1]
        if not shown:
            return None
        return self.separator.join(shown).encode()[: self.most].decode("utf-8", "ignore")


def _sorting(value: Any) -> tuple[int, Any]:
    if value is None:
        return (0, 0)
    return (1, value) if isinstance(value, (int, float)) else (2, weight(text(value)))


def spread(squares: bool, sample: bool) -> type:
    """STDDEV and VARIANCE, of the population or a sample."""

    class Spread:
        def __init__(self) -> None:
            self.count, self.mean, self.total = 0, 0.0, 0.0

        def step(self, value: Any) -> None:
            if value is not None:
                self.count += 1
                apart = float(number(value)) - self.mean
                self.mean += apart / self.count
                self.total += apart * (float(number(value)) - self.mean)

        def finalize(self) -> Any:
            if self.count <= sample:
                return None
            found = self.total / (self.count - sample)
            return found if squares else math.sqrt(found)

    return Spread


AGGREGATES: dict[str, type] = {
    "group_concat": GroupConcat,
    "stddev": spread(False, False),
    "stddev_samp": spread(False, True),
    "variance": spread(True, False),
    "var_samp": spread(True, True),
}
