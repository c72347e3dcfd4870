"""Python values as JSON, with tags for what JSON lacks.

| value | JSON |
|---|---|
| None, bool, int, finite float, str, list | itself |
| dict whose keys are all str, none starting with `__` | object |
| other dict | `{"__dict__": [[key, value], ...]}` in insertion order |
| tuple | `{"__tuple__": [...]}` |
| set, frozenset | `{"__set__": [...]}`, `{"__frozenset__": [...]}`, ordered by their JSON text |
| bytes, bytearray | `{"__bytes__": "hex"}` |
| nan, inf, -inf | `{"__float__": "nan"}` ... |
| complex | `{"__complex__": [real, imaginary]}`, each encoded as a float |

A subclass (Counter, namedtuple, IntEnum) is encoded as its base. Everything else is refused.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

LONGEST_INT_BITS = 13_000  # decimal text beyond 4300 digits is refused by int()
# Hashes of numbers and tuples are no secret: who picks them to collide makes a set take the square
# of its size. Real ones hardly ever share one.
_EQUAL_HASHES = 64


def to_json(value: Any) -> Any:
    """Return *value* as JSON with the tags above.

    Raises:
        TypeError: a type outside the table.
        ValueError: a string that is not Unicode text, or an integer of more than 13,000 bits.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        plain = int(value)
        if plain.bit_length() > LONGEST_INT_BITS:
            raise ValueError("an integer too long to report")
        return plain
    if isinstance(value, float):
        number = float(value)
        return number if math.isfinite(number) else {"__float__": repr(number)}
    if isinstance(value, str):
        text = str.__str__(value)
        text.encode()
        return text
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if isinstance(value, tuple):
        return {"__tuple__": [to_json(item) for item in value]}
    if isinstance(value, (set, frozenset)):
        tag = "__set__" if isinstance(value, set) else "__frozenset__"
        return {tag: sorted((to_json(item) for item in value), key=json.dumps)}
    if isinstance(value, dict):
        if all(type(key) is str and not key.startswith("__") for key in value):
            return {to_json(key): to_json(item) for key, item in value.items()}
        return {"__dict__": [[to_json(key), to_json(item)] for key, item in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"__bytes__": bytes(value).hex()}
    if isinstance(value, complex):
        return {"__complex__": [to_json(value.real), to_json(value.imag)]}
    raise TypeError(f"a value of type {type(value).__name__} cannot be reported")


def from_json(value: Any) -> Any:
    """Invert `to_json`; a dict that carries no known tag stays a dict.

    Raises:
        ValueError, TypeError, ArithmeticError: a tag with a content that does not fit it, or a
            set or dict of which more than 64 members share a hash.
    """
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((tag, content),) = value.items()
        if tag == "__tuple__":
            return tuple(from_json(item) for item in content)
        if tag == "__set__":
            return set(_spread([from_json(item) for item in content]))
        if tag == "__frozenset__":
            return frozenset(_spread([from_json(item) for item in content]))
        if tag == "__dict__":
            pairs = [(from_json(key), from_json(item)) for key, item in content]
            _spread([key for key, _ in pairs])
            return dict(pairs)
        if tag == "__bytes__":
            return bytes.fromhex(content)
        if tag == "__float__":
            return float(content)
        if tag == "__complex__":
            real, imaginary = content
            return complex(from_json(real), from_json(imaginary))
    return {key: from_json(item) for key, item in value.items()}


def _spread(members: Sequence[Any]) -> Sequence[Any]:
    """*members*, if a set can hold them at a fair price."""
    hashes: Iterable[int] = Counter(map(hash, members)).values()
    if max(hashes, default=0) > _EQUAL_HASHES:
        raise ValueError(f"more than {_EQUAL_HASHES} members share a hash")
    return members
