"""DBBench's files: one record per line, as AgentBench and CycleQD write them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cqd_hub.errors import UserError
from cqd_hub.evaluation.databases import Table
from cqd_hub.evaluation.environments._data import find_data
from cqd_hub.evaluation.episodes import Sample

from .faults import fault_of

MODIFICATIONS = ("INSERT", "DELETE", "UPDATE")
_WHERE = "options.data"
_NAMES = (
    "data/dbbench",
    "dbbench",
    "evaluation/fishfarm/data/db",
    "**/data_dbbench_standard_dev.jsonl",
    "**/standard.jsonl",
    "**/dev.jsonl",
    "*.jsonl",
    "**/*.jsonl",
)
_HASH = re.compile(r"[0-9a-f]{32}")


class Problem(NamedTuple):
    """One record.

    Args:
        kind: INSERT, UPDATE or DELETE, or a word for a kind of question.
        description: What is asked.
        about: What is said of the table; may be empty.
        evidence: What else is said (the function-calling data); may be empty.
        tables: Most have one.
        label: The answers of a question; the statement of a modification.
        digests: Of the changed tables, where known.
        sql: A statement that makes the change, where the digests are not known.
    """

    kind: str
    description: str
    about: str
    evidence: str
    tables: tuple[Table, ...]
    label: tuple[str, ...]
    digests: tuple[str, ...]
    sql: str

    @property
    def modifies(self) -> bool:
        return self.kind in MODIFICATIONS


def read_samples(data: str, folder: Path, engine: str) -> dict[str, list[Sample]]:
    """File stem → its samples.

    Args:
        data: A file; a folder of them; an AgentBench or CycleQD checkout; a data set of the Hub.
        folder: What a relative path starts from.
        engine: Whose known faults count.

    Raises:
        UserError: There is none, or a record is not one of DBBench's.
    """
    near = folder / Path(data).expanduser()
    place = (
        near if any(near.glob("*.jsonl")) else find_data(data, folder, names=_NAMES, where=_WHERE)
    )
    files = sorted(place.glob("*.jsonl")) if place.is_dir() else [place]
    if not files:
        raise UserError(
            f"{place} holds no .jsonl file", where=_WHERE, remedy="name DBBench's dev.jsonl itself"
        )
    return {file.stem: _read(file, engine) for file in files}


def _read(file: Path, engine: str) -> list[Sample]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot be read: {error}", where=str(file), remedy="name another"
        ) from error
    records = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    seen: dict[str, int] = {}
    samples = []
    for position, (number, line) in enumerate(records):
        where = f"{file}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"is no JSON: {error}", where=where, remedy="take the file anew"
            ) from None
        problem = problem_of(record, where)
        question = f"{problem.description}\n{problem.about}"
        name = hashlib.sha256(question.encode()).hexdigest()[:12]
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            name = f"{name}-{seen[name]}"
        fault = fault_of(
            problem.tables,
            name=name,
            position=position,
            count=len(records),
            modifies=problem.modifies,
            engine=engine,
        )
        samples.append(Sample(name, question, record, fault))
    return samples


def problem_of(record: Any, where: str = "") -> Problem:
    """Check and read a record.

    Raises:
        UserError: A field is missing or of another kind.
    """
    try:
        kind = _word(record["type"])
        tables = record["table"]
        made = tuple(_table(table) for table in (tables if isinstance(tables, list) else [tables]))
        modifies = kind in MODIFICATIONS
        label = record.get("label") or []
        label = (label,) if isinstance(label, str) else tuple(map(str, label))
        digest = str(record.get("answer_md5") or "")
        sql = str((record.get("sql") or {}).get("query") or "")
        if not made:
            raise ValueError("no table")
        if not modifies and not label:
            raise ValueError("no label")
        if modifies and not _HASH.search(digest) and not sql and not label:
            raise ValueError("no answer_md5")
        return Problem(
            kind=kind,
            description=_text(record, "description"),
            about=str(record.get("add_description") or ""),
            evidence=str(record.get("evidence") or ""),
            tables=made,
            label=label,
            digests=tuple(_HASH.findall(digest)),
            sql=sql or (label[0] if modifies and label else ""),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"is no DBBench record: {what}",
            where=where,
            remedy="expected description, type, table, and label or answer_md5",
        ) from None


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is no text")
    return value


def _word(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        value = value[0]
    if not isinstance(value, str):
        raise TypeError("type is no text")
    return value


def _table(data: Mapping[str, Any]) -> Table:
    info = data["table_info"]
    return Table(
        _text(data, "table_name"),
        tuple(_text(column, "name") for column in info["columns"]),
        tuple(tuple(None if cell is None else str(cell) for cell in row) for row in info["rows"]),
    )
