"""MySQL's functions of strings."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Callable
from typing import Any

from .sql_text import like, regexp, weight
from .sql_values import LONGEST, MySQLError, integer, number, rounded, rounded_double, text


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
    found = rounded(number(value), digits) if exact else rounded_double(value, digits)
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


# Of these a NULL among the arguments is the result.
PLAIN: dict[str, Callable[..., Any]] = {
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
}  # fmt: skip
# These see NULLs.
WITH_NULLS: dict[str, Callable[..., Any]] = {
    "concat_ws": _concat_ws, "field": _field, "elt": _elt, "char": _char, "key": _key,
}  # fmt: skip
