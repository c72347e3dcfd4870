"""SQLite's errors in MySQL's words and numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

SYNTAX = (
    "1064 (42000): You have an error in your SQL syntax; check the manual that corresponds to your "
    "MySQL server version for the right syntax to use near '{}' at line 1"
)
TIME = "3024 (HY000): Query execution was interrupted, maximum statement execution time exceeded"
LOST = "2013 (HY000): Lost connection to MySQL server during query"
LONG = "1153 (08S01): Got a packet bigger than 'max_allowed_packet' bytes"
COMPLEX = "1436 (HY000): Thread stack overrun: the statement is too complex"
_NUMBERED = re.compile(r"\d{4} \([0-9A-Z]{5}\): ")
_GROUPED = (
    "1055 (42000): Expression #1 of SELECT list is not in GROUP BY clause and contains "
    "nonaggregated column '{}' which is not functionally dependent on columns in GROUP BY clause; "
    "this is incompatible with sql_mode=only_full_group_by"
)
_Make = Callable[[re.Match[str], str, Mapping[str, str]], str]


def _column(match: re.Match[str], database: str, clauses: Mapping[str, str]) -> str:
    name = match[1]
    clause = clauses.get(name.rpartition(".")[2].lower(), "field list")
    return f"1054 (42S22): Unknown column '{name}' in '{clause}'"


def _ambiguous(match: re.Match[str], database: str, clauses: Mapping[str, str]) -> str:
    name = match[1]
    clause = clauses.get(name.rpartition(".")[2].lower(), "field list")
    return f"1052 (23000): Column '{name}' in {clause} is ambiguous"


_KNOWN: tuple[tuple[str, _Make], ...] = (
    (r"no such table: (?:main\.)?(.*)", lambda m, d, c: (
        f"1146 (42S02): Table '{d}.{m[1]}' doesn't exist")),
    (r"unknown table: (.*)", lambda m, d, c: f"1051 (42S02): Unknown table '{d}.{m[1]}'"),
    (r"no such column: (.*)", _column),
    (r"table .* has no column named (.*)", _column),
    (r"ambiguous column name: (.*)", _ambiguous),
    (r"not grouped: (.*)", lambda m, d, c: _GROUPED.format(f"{d}.{m[1]}")),
    (r"no such function: (.*)", lambda m, d, c: (
        f"1305 (42000): FUNCTION {d}.{m[1]} does not exist")),
    (r"not authorized to use function: (.*)", lambda m, d, c: (
        f"1305 (42000): FUNCTION {d}.{m[1]} does not exist")),
    (r"table `?(.*?)`? already exists", lambda m, d, c: (
        f"1050 (42S01): Table '{m[1]}' already exists")),
    (r"there is already another table or index with this name: (.*)", lambda m, d, c: (
        f"1050 (42S01): Table '{m[1]}' already exists")),
    (r"duplicate column name: (.*)", lambda m, d, c: (
        f"1060 (42S21): Duplicate column name '{m[1]}'")),
    (r"(?:table .* has \d+ columns but \d+ values were supplied|\d+ values for \d+ columns|"
     r"all VALUES must have the same number of terms)", lambda m, d, c: (
        "1136 (21S01): Column count doesn't match value count at row 1")),
    (r"SELECTs to the left and right of .* do not have the same number.*", lambda m, d, c: (
        "1222 (21000): The used SELECT statements have a different number of columns")),
    (r"sub-select returns \d+ columns.*|row value misused", lambda m, d, c: (
        "1241 (21000): Operand should contain 1 column(s)")),
    (r"misuse of (?:aggregate|window function).*", lambda m, d, c: (
        "1111 (HY000): Invalid use of group function")),
    (r"aggregate functions are not allowed.*", lambda m, d, c: (
        "1111 (HY000): Invalid use of group function")),
    (r"wrong number of arguments to function (.*)\(\)", lambda m, d, c: (
        "1582 (42000): Incorrect parameter count in the call to native function "
        f"'{m[1].removeprefix('my_').upper()}'")),
    (r"UNIQUE constraint failed: (?:.*\.)?(.*)", lambda m, d, c: (
        f"1062 (23000): Duplicate entry for key '{m[1]}'")),
    (r"NOT NULL constraint failed: (?:.*\.)?(.*)", lambda m, d, c: (
        f"1048 (23000): Column '{m[1]}' cannot be null")),
    (r"CHECK constraint failed: integer (.*)", lambda m, d, c: (
        f"1366 (HY000): Incorrect integer value for column '{m[1]}' at row 1")),
    (r"CHECK constraint failed: length (.*)", lambda m, d, c: (
        f"1406 (22001): Data too long for column '{m[1]}' at row 1")),
    (r"no tables specified", lambda m, d, c: "1096 (HY000): No tables used"),
    (r"database or disk is full|out of memory", lambda m, d, c: (
        "1114 (HY000): The table is full")),
    (r"string or blob too big", lambda m, d, c: LONG),
    (r"(?:Expression tree is too large|parser stack overflow|too many .*).*", lambda m, d, c: (
        COMPLEX)),
    (r'near "(.*)": syntax error', lambda m, d, c: SYNTAX.format(m[1])),
    (r"not authorized|access to .* is prohibited", lambda m, d, c: (
        "1142 (42000): command denied to user 'agent'@'localhost'")),
)  # fmt: skip
_PATTERNS = tuple((re.compile(pattern, re.DOTALL), make) for pattern, make in _KNOWN)


def mysql_error(message: str, database: str, clauses: Mapping[str, str]) -> str:
    """What MySQL would say.

    Args:
        message: The server's word, SQLite's, or MySQL's already.
        clauses: Where each name of the statement was first used.
    """
    if message == "time":
        return TIME
    if _NUMBERED.match(message):
        return message
    for pattern, make in _PATTERNS:
        if match := pattern.fullmatch(message):
            return make(match, database, clauses)
    return f"1105 (HY000): {message[:200]}"
