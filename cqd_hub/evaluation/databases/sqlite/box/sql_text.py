"""Text as MySQL compares it: blind to case and accents, in Unicode's order of symbols."""

from __future__ import annotations

import functools
import re
import unicodedata

# Unicode's root order of what is neither digit nor letter (UTS #10), as far as tables hold it.
_SYMBOLS = (
    "\t\n\x0b\x0c\r\x85 _-‐‑‒–—―,;:!¡?¿.·'‘’‚‹›\"“”„«»()[]{}§¶@*/\\&#%‰†‡•`´˜^¯¨¸°©®←→↑↓+±÷×<=>"
    "¬|¦~−√∞≈≤≥■□○●★☆♠♣♥♦♪¤¢$£¥€"
)
_ORDER: dict[int, int | None] = {ord(symbol): 0x21 + place for place, symbol in enumerate(_SYMBOLS)}
_ORDER |= {0x30 + digit: 0x200 + digit for digit in range(10)}
_LETTERS = "abcdefghiıjklmnŋopqĸrstŧuvwxyzþ"
_ORDER |= {ord(letter): 0x300 + place for place, letter in enumerate(_LETTERS)}
_ORDER[0xAD] = None  # a soft hyphen counts for nothing
# Letters that have no decomposition but another's weight.
_ALIKE = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "æ": "ae", "œ": "oe"}
    | {chr(kana): chr(kana - 0x60) for kana in range(0x30A1, 0x30F7)}
)
# Symbols that would decompose into a space and an accent, or a letter and a dot: stand-ins.
_WHOLE = {"´": "\x84", "¨": "\x86", "¯": "\x87", "˜": "\x88", "¸": "\x89", "ŀ": "l", "Ŀ": "l"}
_KEPT = str.maketrans(_WHOLE)
_ORDER |= {ord(place): _ORDER[ord(whole)] for whole, place in _WHOLE.items() if place != "l"}


@functools.lru_cache(maxsize=1 << 15)
def weight(text: str) -> str:
    """What decides order and equality of *text* (nearest to utf8mb4_uca1400_nopad_ai_ci)."""
    if text.isascii():
        return text.lower().translate(_ORDER)
    base = unicodedata.normalize("NFKD", text.translate(_KEPT))
    base = "".join(letter for letter in base if not unicodedata.combining(letter))
    return base.casefold().translate(_ALIKE).translate(_ORDER)


def compare(one: str, other: str) -> int:
    """The collation: -1, 0 or 1."""
    if one == other:
        return 0
    first, second = weight(one), weight(other)
    return (first > second) - (first < second)


@functools.lru_cache(maxsize=256)
def _pattern(pattern: str, escape: str, exact: bool) -> tuple[tuple[str, ...], ...]:
    """Runs of weights between the per cents; an underscore is the empty weight."""
    runs: list[list[str]] = [[]]
    weigh = str if exact else weight
    letters = iter(pattern)
    for letter in letters:
        if letter == escape:
            runs[-1].append(weigh(next(letters, letter)))
        elif letter == "%":
            runs.append([])
        else:
            runs[-1].append("" if letter == "_" else weigh(letter))
    return tuple(tuple(run) for run in runs)


@functools.lru_cache(maxsize=1 << 13)
def _letters(text: str) -> tuple[str, ...]:
    return tuple(weight(letter) for letter in text)


def like(text: str, pattern: str, escape: str = "\\", exact: bool = False) -> bool:
    """LIKE, letter by letter, in at most len(text) * len(pattern) steps.

    Args:
        exact: Case and accents count.
    """
    first, *rest = _pattern(pattern, escape, exact)
    letters = tuple(text) if exact else _letters(text)
    if not _at(letters, 0, first):
        return False
    place = len(first)
    if not rest:
        return place == len(letters)
    *middle, last = rest
    for run in middle:
        while not _at(letters, place, run):
            place += 1
            if place > len(letters):
                return False
        place += len(run)
    return len(letters) - len(last) >= place and _at(letters, len(letters) - len(last), last)


def _at(letters: tuple[str, ...], place: int, run: tuple[str, ...]) -> bool:
    if place + len(run) > len(letters):
        return False
    return all(not want or want == letters[place + index] for index, want in enumerate(run))


_CLASSES = {
    "alpha": "a-zA-Z\u00c0-\u024f", "digit": "0-9", "alnum": "a-zA-Z0-9\u00c0-\u024f",
    "space": r"\s", "upper": "a-zA-Z", "lower": "a-zA-Z", "xdigit": "0-9a-fA-F", "blank": " \t",
    "punct": r"!-/:-@\[-`{-~", "cntrl": r"\x00-\x1f", "print": r" -~\u00a0-\uffff",
    "graph": r"!-~\u00a1-\uffff",
}  # fmt: skip


@functools.lru_cache(maxsize=256)
def regexp(pattern: str) -> re.Pattern[str]:
    """A MySQL pattern as Python's; blind to case.

    Raises:
        re.error: It is none.
    """
    found = pattern.replace("[[:<:]]", r"\b").replace("[[:>:]]", r"\b")
    found = re.sub(r"\[:(\w+):\]", lambda match: _CLASSES.get(match[1], match[0]), found)
    return re.compile(found, re.IGNORECASE)
