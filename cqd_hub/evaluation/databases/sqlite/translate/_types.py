"""What MySQL would type an expression as, as far as it changes what is compared or shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Type(NamedTuple):
    """A kind: text, binary, int, decimal (with *scale* digits), double, date, datetime, time, null.

    Columns are text unless they come from a derived table: those of the samples' tables are, and
    the server's functions see the numbers of others by themselves.
    """

    kind: str
    scale: int = 0

    @property
    def numeric(self) -> bool:
        return self.kind in ("int", "decimal", "double")

    @property
    def temporal(self) -> bool:
        return self.kind in ("date", "datetime", "time")


TEXT, BINARY, INT, DOUBLE, NULL = (
    Type("text"),
    Type("binary"),
    Type("int"),
    Type("double"),
    Type("null"),
)
DATE, DATETIME, TIME = Type("date"), Type("datetime"), Type("time")
_MOST_DIGITS = 30


def decimal(scale: int) -> Type:
    return Type("decimal", max(0, min(_MOST_DIGITS, scale)))


def joined(types: Iterable[Type]) -> Type:
    """The type of a value that may be any of these (CASE, COALESCE, UNION)."""
    found = [item for item in types if item.kind != "null"]
    if not found:
        return NULL
    if all(item.numeric for item in found):
        if any(item.kind == "double" for item in found):
            return DOUBLE
        if any(item.kind == "decimal" for item in found):
            return decimal(max(item.scale for item in found))
        return INT
    if len({item.kind for item in found}) == 1:
        return found[0]
    if all(item.temporal for item in found):
        return DATETIME
    return TEXT


def arithmetic(sign: str, one: Type, other: Type) -> Type:
    """The type of `one sign other`, text and dates counting as DOUBLE."""
    kinds = {item.kind if item.numeric else "double" for item in (one, other)}
    if NULL in (one, other) and len(kinds) == 2:
        kinds.discard("double")
    if "double" in kinds:
        return DOUBLE
    if sign == "/":
        return decimal(one.scale + 4)
    if "decimal" not in kinds:
        return INT
    return decimal(one.scale + other.scale if sign == "*" else max(one.scale, other.scale))


class Written(NamedTuple):
    """An expression in SQLite's dialect.

    Args:
        sql: Safe as an operand.
        type: MySQL's.
        bare: It is a column, which carries its own collation.
        literal: The literal's own text, where it is one.
    """

    sql: str
    type: Type
    bare: bool = False
    literal: str | None = None


class Refused(Exception):
    """MySQL's answer to a statement is this error.

    Args:
        message: Number, state and text.
    """


def syntax(near: str = "") -> Refused:
    return Refused(
        "1064 (42000): You have an error in your SQL syntax; check the manual that corresponds to "
        f"your MySQL server version for the right syntax to use near '{near[:80]}' at line 1"
    )


def quoted(name: str) -> str:
    """An identifier; between backticks it never falls back to being text."""
    return "`" + name.replace("`", "``") + "`"


def string(text: str) -> str:
    """A string literal; SQLite's ends at a NUL, so that such text is written as bytes."""
    if "\0" in text:
        return f"CAST(x'{text.encode('utf-8', 'replace').hex()}' AS TEXT)"
    return "'" + text.replace("'", "''") + "'"


def text_literal(word: str) -> Written:
    return Written(string(word), TEXT, literal=word)
