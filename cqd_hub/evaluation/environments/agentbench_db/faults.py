"""What is known to be wrong with samples of the public files, so that a score says nothing."""

from __future__ import annotations

from collections.abc import Sequence

from cqd_hub.evaluation.databases import Table

# The 300 of AgentBench's standard.jsonl, alone or with the 60 of dev.jsonl behind (CycleQD).
_STANDARD = (300, 360)
_WRONG_DIGEST = 225
_TEXT_AGAINST_NUMBER = "the intended statement compares text with a number (error 1292)"
# Both engines are in MySQL's strict mode, as MySQL 8 is. Quoting the number helps.
_STRICT = dict.fromkeys(("afcd12231dc3", "faa8ea11b9f9"), _TEXT_AGAINST_NUMBER)
_LONGEST_NAME = 64


def fault_of(
    tables: Sequence[Table],
    *,
    name: str,
    position: int,
    count: int,
    modifies: bool,
    engine: str,
) -> str:
    """What is wrong with a sample, or nothing.

    Args:
        tables: As the sample has them; a table that no engine makes is found by its shape.
        name: The sample's id, the hash of what it asks.
        position: In its file, from 0.
        count: Samples in its file.
        modifies: Whether it is an INSERT, UPDATE or DELETE.
        engine: sqlite or mariadb; the latter refuses more names.
    """
    for table in tables:
        if fault := _unmakeable(table, engine):
            return fault
    if modifies and position == _WRONG_DIGEST and count in _STANDARD:
        return "its answer_md5 is not what its own statement gives, on any engine"
    return _STRICT.get(name, "")


def _unmakeable(table: Table, engine: str) -> str:
    folded = [column.casefold() for column in table.columns]
    if twice := sorted({column for column in folded if folded.count(column) > 1}):
        return f"table {table.name!r} has a column {twice[0]!r} twice"
    for number, row in enumerate(table.rows, 1):
        if len(row) != len(table.columns):
            return (
                f"row {number} of table {table.name!r} has {len(row)} cells for "
                f"{len(table.columns)} columns"
            )
    if engine == "sqlite":
        return ""
    for column in table.columns:
        if not column or column.endswith(" ") or len(column) > _LONGEST_NAME:
            return f"MySQL has no column {column!r}, as table {table.name!r} wants"
    return ""
