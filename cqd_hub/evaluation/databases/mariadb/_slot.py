"""What we do as the server's administrator: users, tables, hashes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from cqd_hub.errors import UserError
from cqd_hub.evaluation.databases._interface import DatabaseLost, Table
from cqd_hub.evaluation.sandbox import printable

from ._connection import Connection

_KILL_SECONDS = 10.0
_INSERT_BYTES = 200_000
_RIGHTS = (
    "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, ALTER, INDEX, REFERENCES, CREATE VIEW, "
    "SHOW VIEW, CREATE TEMPORARY TABLES, LOCK TABLES"
)


class Slot(NamedTuple):
    """A database and its user, both of that name, and our own connection."""

    name: str
    admin: Connection


def quoted(name: str) -> str:
    """An identifier, whatever it holds."""
    return "`" + name.replace("`", "``") + "`"


def check(table: Table) -> None:
    """What a server would refuse in words that do not name the row."""
    for number, row in enumerate(table.rows, 1):
        if len(row) != len(table.columns):
            raise UserError(
                f"row {number} of table {table.name!r} has {len(row)} cells for "
                f"{len(table.columns)} columns"
            )


def make_user(slot: Slot) -> None:
    # The name has an underscore, which is a wildcard in a grant.
    pattern = slot.name.replace("_", "\\_")
    slot.admin.run(f"CREATE OR REPLACE USER {slot.name}@localhost")
    slot.admin.run(f"GRANT {_RIGHTS} ON `{pattern}`.* TO {slot.name}@localhost")


def make_tables(slot: Slot, tables: Sequence[Table], collation: str) -> None:
    name = slot.name

    def run(sql: str, values: Sequence[str | None] | None = None) -> None:
        if error := slot.admin.run(sql, values).error:
            raise UserError(f"a table of the sample cannot be made: {printable(error)}")

    run(f"DROP DATABASE IF EXISTS {name}; CREATE DATABASE {name} COLLATE {collation}; USE {name}")
    for table in tables:
        columns = [quoted(column) for column in table.columns]
        run(f"CREATE TABLE {quoted(table.name)} ({', '.join(f'{c} TEXT' for c in columns)})")
        head = f"INSERT INTO {quoted(table.name)} ({', '.join(columns)}) VALUES "
        row_text = f"({', '.join(['%s'] * len(columns))})"
        values: list[str | None] = []
        count = size = 0
        for row in table.rows:
            values += row
            count += 1
            size += sum(len(cell or "") * 2 for cell in row)
            if size > _INSERT_BYTES:
                run(head.replace("%", "%%") + ", ".join([row_text] * count), values)
                values, count, size = [], 0, 0
        if count:
            run(head.replace("%", "%%") + ", ".join([row_text] * count), values)


def digest(slot: Slot, table: str, columns: Sequence[str] | None) -> str:
    if columns is None:
        found = slot.admin.run(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND "
            "table_name = %s ORDER BY ordinal_position",
            [slot.name, table],
        )
        columns = [str(row[0]) for row in found.rows]
    if not columns:
        return ""
    answered = slot.admin.run(
        "SELECT MD5(GROUP_CONCAT(rowhash ORDER BY rowhash)) FROM (SELECT SUBSTRING(MD5(CONCAT_WS("
        f"',', {', '.join(map(quoted, columns))})), 1, 5) AS rowhash "
        f"FROM {slot.name}.{quoted(table)}) AS hashes"
    )
    value = answered.rows[0][0] if answered.rows else None
    return value if isinstance(value, str) else ""


def kill(admin: Connection, number: int) -> None:
    """Kill a connection of another and wait for its end; that it is gone already is fine.

    Raises:
        DatabaseLost: It does not end.
    """
    admin.run(f"KILL {number}")
    deadline = time.monotonic() + _KILL_SECONDS
    while admin.run(f"SELECT 1 FROM information_schema.processlist WHERE id = {number}").rows:
        if time.monotonic() > deadline:
            raise DatabaseLost("a killed statement does not end")
        time.sleep(0.001)  # most end within milliseconds
