"""DB: a question over a small schema, answered by one SQL statement.

Judged by the rows it returns, or for a change by the rows of a probe afterwards.
"""

from __future__ import annotations

import itertools
import random
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from families.concept import Concept


class Table(NamedTuple):
    name: str
    group: str
    groups: tuple[str, ...]
    numbers: tuple[str, str]


_TABLES = (
    Table("pets", "kind", ("cat", "dog", "bird", "fish", "frog"), ("age", "cost")),
    Table("staff", "team", ("red", "blue", "green", "black", "white"), ("age", "pay")),
    Table("shops", "city", ("rome", "paris", "oslo", "bern", "kyiv"), ("size", "cost")),
    Table("books", "kind", ("art", "food", "war", "sea", "law"), ("size", "price")),
)
_NAMES = [
    "tom",
    "ann",
    "ben",
    "sam",
    "eva",
    "max",
    "lea",
    "ida",
    "jon",
    "kim",
    "leo",
    "mia",
    "ned",
    "pia",
    "rob",
    "sue",
    "tim",
    "una",
    "vic",
    "zoe",
]
_VALUES = range(2, 100)
_FEW = range(2, 6)
_SIGNS = {">": "(above|over|greater than)", "<": "(below|under|less than)"}
_WITH = "(with|that have)"


def concepts() -> Iterator[Concept]:
    """Yield every gold answer of the family."""
    for table in _TABLES:
        for column, other in (table.numbers, table.numbers[::-1]):
            yield from _plain(table, column)
            for value in _VALUES:
                for sign, said in _SIGNS.items():
                    where, asked = f"{column}{sign}{value}", f"{_WITH} {column} {said} {value}"
                    yield from _by_value(table, column, other, value, where, asked)


def _make(
    level: int, kind: str, table: Table, answer: str, phrasing: str, **facts: object
) -> Concept:
    return Concept(answer, level, kind, phrasing, {"table": table, **facts})


def _plain(t: Table, column: str) -> Iterator[Concept]:
    """Yield the questions without a threshold."""
    for value in _VALUES:
        yield _make(
            1,
            "equal",
            t,
            f"SELECT name FROM {t.name} WHERE {column}={value}",
            f"(name|names) of {t.name} {_WITH} {column} {value}",
            value=value,
            column=column,
        )
    for f in ("max", "min", "sum"):
        yield _make(
            1,
            "total",
            t,
            f"SELECT {f}({column}) FROM {t.name}",
            f"(the|show the) {f} {column} of {t.name}",
        )
    for n, (way, said) in itertools.product(
        _FEW, (("DESC", "(largest|top)"), ("ASC", "(smallest|least)"))
    ):
        yield _make(
            2,
            "top",
            t,
            f"SELECT name FROM {t.name} ORDER BY {column} {way} LIMIT {n}",
            f"(name|names) of the {n} {t.name} with the {said} {column}",
            ordered=True,
        )
    for g in t.groups:
        asked = f"{_WITH} {t.group} {g}"
        yield _make(
            1,
            "group",
            t,
            f"SELECT name FROM {t.name} WHERE {t.group}='{g}'",
            f"(name|names) of {t.name} {asked}",
        )
        yield _make(
            1,
            "group",
            t,
            f"SELECT count(*) FROM {t.name} WHERE {t.group}='{g}'",
            f"(how many|count of) {t.name} {asked}",
        )
        yield _make(
            1,
            "delete",
            t,
            f"DELETE FROM {t.name} WHERE {t.group}='{g}'",
            f"(delete|remove) {t.name} {asked}",
            change=True,
        )
        yield _make(
            2,
            "order",
            t,
            f"SELECT name FROM {t.name} WHERE {t.group}='{g}' ORDER BY {column}",
            f"(name|names) of {t.name} {asked} in order of {column}",
            ordered=True,
        )
        for f in ("max", "min", "sum"):
            yield _make(
                2,
                "total of",
                t,
                f"SELECT {f}({column}) FROM {t.name} WHERE {t.group}='{g}'",
                f"(the|show the) {f} {column} of {t.name} {asked}",
            )
        for value in _VALUES:
            yield _make(
                2,
                "set",
                t,
                f"UPDATE {t.name} SET {column}={value} WHERE {t.group}='{g}'",
                f"(set {column} to|put {column} at) {value} for {t.name} {asked}",
                change=True,
            )


def _by_value(
    t: Table, column: str, other: str, value: int, where: str, asked: str
) -> Iterator[Concept]:
    """Yield the questions about rows on one side of a threshold."""
    facts = {"value": value, "column": column}
    start = f"FROM {t.name} WHERE {where}"
    yield _make(1, "names", t, f"SELECT name {start}", f"(name|names) of {t.name} {asked}", **facts)
    yield _make(
        1,
        "column",
        t,
        f"SELECT {other} {start}",
        f"(the|show the) {other} of {t.name} {asked}",
        **facts,
    )
    yield _make(
        1, "count", t, f"SELECT count(*) {start}", f"(how many|count of) {t.name} {asked}", **facts
    )
    yield _make(
        1, "delete", t, f"DELETE {start}", f"(delete|remove) {t.name} {asked}", change=True, **facts
    )
    yield _make(
        2,
        "distinct",
        t,
        f"SELECT DISTINCT {t.group} {start}",
        f"(different|distinct) {t.group} of {t.name} {asked}",
        **facts,
    )
    yield _make(
        2,
        "total of",
        t,
        f"SELECT sum({other}) {start}",
        f"(the|show the) sum {other} of {t.name} {asked}",
        **facts,
    )
    yield _make(
        2,
        "order",
        t,
        f"SELECT name {start} ORDER BY {other}",
        f"(name|names) of {t.name} {asked} in order of {other}",
        ordered=True,
        **facts,
    )
    yield _make(
        3,
        "per",
        t,
        f"SELECT {t.group},count(*) {start} GROUP BY {t.group}",
        f"(how many|count of) {t.name} per {t.group} {asked}",
        **facts,
    )
    yield _make(
        3,
        "per",
        t,
        f"SELECT {t.group},sum({other}) {start} GROUP BY {t.group}",
        f"(the|show the) sum {other} of {t.name} per {t.group} {asked}",
        **facts,
    )
    enough = _FEW if 15 < value < 85 else ()
    for n, (way, said) in itertools.product(
        enough, (("DESC", "(largest|top)"), ("ASC", "(smallest|least)"))
    ):
        yield _make(
            3,
            "top of",
            t,
            f"SELECT name {start} ORDER BY {other} {way} LIMIT {n}",
            f"(name|names) of the {n} {t.name} with the {said} {other} {asked}",
            ordered=True,
            few=n,
            **facts,
        )
    for g in t.groups:
        both, said = f"{start} AND {t.group}='{g}'", f"{asked} and {t.group} {g}"
        yield _make(
            2, "and", t, f"SELECT name {both}", f"(name|names) of {t.name} {said}", group=g, **facts
        )
        yield _make(
            3,
            "total and",
            t,
            f"SELECT sum({other}) {both}",
            f"(the|show the) sum {other} of {t.name} {said}",
            group=g,
            **facts,
        )
        yield _make(
            3,
            "delete and",
            t,
            f"DELETE {both}",
            f"(delete|remove) {t.name} {said}",
            group=g,
            change=True,
            **facts,
        )
        for n in _FEW:
            yield _make(
                3,
                "raise",
                t,
                f"UPDATE {t.name} SET {other}={other}+{n} WHERE {where} AND {t.group}='{g}'",
                f"(add {n} to {other}|raise {other} by {n}) of {t.name} {said}",
                group=g,
                change=True,
                **facts,
            )


def _schema(concept: Concept, rng: random.Random) -> str:
    table: Table = concept.facts["table"]
    other = rng.choice([t for t in _TABLES if t.name != table.name])
    return _filled(table, _rows(table, concept.facts, rng)) + _filled(
        other, _rows(other, {}, rng, size=3)
    )


def _rows(table: Table, facts: dict, rng: random.Random, size: int = 12) -> list[list]:
    """Draw rows with distinct numbers in each column, some of them right at the threshold."""
    columns = {c: rng.sample(range(1, 101), size) for c in table.numbers}
    groups = [rng.choice(table.groups) for _ in range(size)]
    if "value" in facts:
        value = facts["value"]
        near = [value - 1, value, value + 1]
        column = [v for v in columns[facts["column"]] if v not in near]
        columns[facts["column"]] = near + column[: size - 3]
        if "group" in facts:
            groups[:3] = [facts["group"]] * 3
    rows = list(zip(rng.sample(_NAMES, size), groups, *columns.values(), strict=True))
    rng.shuffle(rows)
    return [list(row) for row in rows]


def _filled(table: Table, rows: list[list]) -> str:
    first, second = table.numbers
    values = ",".join(f"('{n}','{g}',{a},{b})" for n, g, a, b in rows)
    made = f"CREATE TABLE {table.name}(name TEXT,{table.group} TEXT,{first} INT,{second} INT);"
    return f"{made}INSERT INTO {table.name} VALUES{values};"


def records(chosen: list[tuple[Concept, random.Random]]) -> list[dict]:
    """Return the family's fields of each item, the expected rows by running the gold."""
    fields = []
    for concept, rng in chosen:
        table = concept.facts["table"].name
        probe = f"SELECT * FROM {table} ORDER BY name" if concept.facts.get("change") else ""
        for _ in range(50):
            schema = _schema(concept, rng)
            expected = run(schema, concept.answer, probe)
            before = run(schema, probe or f"SELECT name FROM {table}", "")["rows"]
            few = concept.facts.get("few", 0)
            told = (
                len(expected["rows"]) >= max(few, 1) and None not in expected["rows"][0]
                if not probe
                else True
            )
            if told and expected["rows"] != before and expected.get("probe") != before:
                break
        else:
            raise ValueError(f"no telling rows for {concept.answer}")
        field = {"schema": schema, "ordered": bool(concept.facts.get("ordered"))}
        fields.append(field | ({"probe": probe} if probe else {}) | {"expected": expected})
    return fields


def run(schema: str, query: str, probe: str) -> dict:
    """Run a gold statement, our own text, on a fresh database in memory."""
    database = sqlite3.connect(":memory:")
    try:
        database.executescript(schema)
        result = {"rows": [list(row) for row in database.execute(query)]}
        if probe:
            result["probe"] = [list(row) for row in database.execute(probe)]
        return result
    finally:
        database.close()
