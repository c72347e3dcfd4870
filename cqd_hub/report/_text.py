"""Text that others wrote, made safe to look at."""

from __future__ import annotations

import unicodedata

# Controls, formatting (bidi overrides, zero width), surrogates, private, unassigned, separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

# By name: the pictures Unicode has for them are missing from most fonts.
_CONTROLS = {0: "NUL", 7: "BEL", 8: "BS", 9: "TAB", 10: "LF", 12: "FF", 13: "CR", 27: "ESC"}


def visible(text: str, *, one_line: bool = False) -> str:
    """Return *text* with every character that acts instead of showing replaced by a visible sign.

    Control characters become their names (⟨ESC⟩), others their numbers (⟨U+202E⟩). The result
    encodes as UTF-8 and moves no cursor. Markup is not escaped: that is the page's.

    Args:
        text: Any text, lone surrogates included.
        one_line: Replace tabs and line feeds too.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = "" if one_line else "\n\t"
    return "".join(
        sign if sign in kept or unicodedata.category(sign) not in _HIDDEN else _picture(ord(sign))
        for sign in text
    )


def _picture(code: int) -> str:
    return f"⟨{_CONTROLS.get(code, f'U+{code:04X}')}⟩"


def cut(text: str, *, characters: int = 2000, lines: int = 60) -> tuple[str, int]:
    """Return the beginning of *text*, and how many characters were left out."""
    kept = text[:characters]
    ends = kept.split("\n", lines)
    if len(ends) > lines:
        kept = "\n".join(ends[:lines])
    return kept, len(text) - len(kept)


def percent(value: float, *, signed: bool = False) -> str:
    """Return a score or difference in 0..1 as percent with one decimal, never ``-0.0``."""
    rounded = round(100 * value, 1) + 0.0
    return f"{rounded:+.1f}" if signed and rounded else f"{rounded:.1f}"


def short(text: str, length: int) -> str:
    """Return *text* as one line of at most *length* characters."""
    text = visible(text, one_line=True)
    return text if len(text) <= length else text[: length - 1] + "…"
