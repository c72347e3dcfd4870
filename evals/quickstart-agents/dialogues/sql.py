"""DB: DBBench questions over one table: one statement, or two where the second needs the first."""

from __future__ import annotations

import hashlib
import random
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from families.concept import Concept

from dialogues.problem import Asked, Problem


class _Table(NamedTuple):
    name: str
    group: str
    numbers: tuple[str, str]

    @property
    def columns(self) -> tuple[str, ...]:
        return ("name", self.group, *self.numbers)


_TABLES = (
    _Table("staff", "team", ("age", "pay")),
    _Table("pets", "kind", ("age", "weight")),
    _Table("shops", "town", ("rooms", "rent")),
    _Table("boats", "port", ("seats", "speed")),
)
_GROUPS = (
    *("red", "blue", "green", "black", "white", "brown", "north", "south"),
    *("east", "west", "lake", "hill", "wood", "sand", "snow", "fire"),
)
_NAMES = (
    *("Ada", "Ann", "Ben", "Bob", "Cal", "Dan", "Eva", "Fay", "Gus", "Hal", "Ida", "Ivy"),
    *("Jan", "Jim", "Joe", "Kai", "Kim", "Lea", "Leo", "Max", "Mia", "Ned", "Nia", "Oda"),
    *("Ola", "Pam", "Pat", "Ray", "Rob", "Roy", "Sam", "Sue", "Ted", "Tim", "Tom", "Uma"),
)
_EXTREMES = (("MAX", "highest", "DESC"), ("MIN", "lowest", "ASC"))
_ROWS = 8


def concepts() -> Iterator[Concept]:
    """Yield every gold answer of the family: its first statement."""
    for table in _TABLES:
        t, g = table.name, table.group
        for group in _GROUPS:
            yield from _of_group(table, f"{g}='{group}'", group)
        for name in _NAMES:
            for c in (g, *table.numbers):
                yield _make(
                    1,
                    "lookup",
                    table,
                    f"SELECT {c} FROM {t} WHERE name='{name}'",
                    f"(what is the {c} of {name}|which {c} has {name})?",
                    name=name,
                )
            yield from _through(table, name)
            for c in table.numbers:
                for value in range(10, 100, 9):
                    yield _make(
                        2,
                        "update",
                        table,
                        f"UPDATE {t} SET {c}='{value}' WHERE name='{name}'",
                        f"(set the {c} of {name} to|change the {c} of {name} to) {value}.",
                        name=name,
                        value=str(value),
                    )
            for i, group in enumerate(_GROUPS):
                first, second = 10 + (7 * i) % 90, 10 + (11 * i + len(name + t) * 13) % 90
                yield _make(
                    2,
                    "insert",
                    table,
                    f"INSERT INTO {t} VALUES ('{name}','{group}','{first}','{second}')",
                    f"(add|insert) {name}, {group}, {first}, {second}.",
                    new=name,
                )


def _of_group(table: _Table, where: str, group: str) -> Iterator[Concept]:
    t, g = table.name, table.group
    yield _make(
        1,
        "count",
        table,
        f"SELECT COUNT(*) FROM {t} WHERE {where}",
        f"(how many|count those) of {g} {group}?",
        group=group,
    )
    for c in table.numbers:
        for reducer, named, order in _EXTREMES:
            yield _make(
                1,
                "extreme",
                table,
                f"SELECT {reducer}({c}) FROM {t} WHERE {where}",
                f"(what is the|tell the) {named} {c} of {g} {group}?",
                group=group,
            )
            yield _make(
                2,
                "rank",
                table,
                f"SELECT name FROM {t} WHERE {where} ORDER BY {c} {order} LIMIT 1",
                f"(who|which name) of {g} {group} has the {named} {c}?",
                group=group,
            )


def _through(table: _Table, name: str) -> Iterator[Concept]:
    t, g = table.name, table.group
    first = f"SELECT {g} FROM {t} WHERE name='{name}'"
    asked = [("COUNT(*)", f"(how many have|count those of) the {g} of {name}?")]
    asked += [
        (f"{reducer}({c})", f"(what is|tell) the {named} {c} in the {g} of {name}?")
        for c in table.numbers
        for reducer, named, _ in _EXTREMES
    ]
    for what, phrasing in asked:
        # The second statement is put behind the mark, its group to be filled in.
        then = f"SELECT {what} FROM {t} WHERE {g}="
        yield _make(3, what[:3], table, f"{first};{then}", phrasing, name=name)


def _make(
    level: int, kind: str, table: _Table, answer: str, phrasing: str, **facts: str
) -> Concept:
    return Concept(answer, level, kind, phrasing, {"table": table, **facts})


def problems(asked: list[Asked]) -> list[Problem]:
    """Make the samples, answers by running the gold statements."""
    return [_problem(one) for one in asked]


def _problem(one: Asked) -> Problem:
    table: _Table = one.concept.facts["table"]
    rows = _rows(table, one.concept.facts, one.rng)
    database = _load(table, rows)
    kind, answers, turns = "other", ["done"], []
    statement, _, then = one.concept.answer.partition(";")
    seen = database.execute(statement).fetchall()
    turns.append((_operation(statement), repr(seen)))
    if then:
        statement = f"{then}'{seen[0][0]}'"
        seen = database.execute(statement).fetchall()
        turns.append((_operation(statement), repr(seen)))
    changed = [list(row) for row in database.execute(f"SELECT * FROM {table.name}")]
    database.close()
    verb = statement.partition(" ")[0]
    if verb == "SELECT":
        label = answers = [str(row[0]) for row in seen]
    else:
        kind, label = verb, [statement]
    headers = ",".join(table.columns)
    record = {
        "id": one.id,
        "description": one.question,
        "add_description": (
            f"The name of this table is {table.name}, and the headers of this table are {headers}."
        ),
        "type": [kind],
        "table": {
            "table_name": table.name,
            "table_info": {
                "columns": [{"name": column, "type": "TEXT"} for column in table.columns],
                "rows": rows,
            },
        },
        "label": label,
    }
    if verb == "SELECT":
        record["sql"] = {"query": statement}
    else:
        record["answer_md5"] = f"[('{digest(changed)}',)]"
    opening = f"{record['description']}\n{record['add_description']}"
    final = "Action: Answer\nFinal Answer: [" + ", ".join(f'"{a}"' for a in answers) + "]"
    return Problem(record, opening, tuple(turns), final)


def _operation(statement: str) -> str:
    return f"Action: Operation\n```sql\n{statement}\n```"


def _rows(table: _Table, facts: dict, rng: random.Random) -> list[list[str]]:
    """Draw rows with distinct names and numbers; two to four of the group that is asked for."""
    names = rng.sample([name for name in _NAMES if name not in facts.values()], _ROWS)
    groups = rng.sample([group for group in _GROUPS if group != facts.get("group")], 3)
    kept = [facts.get("group", groups[0])] * rng.randint(2, 4)
    if "name" in facts:
        names[0] = facts["name"]
    groups = kept + rng.choices(groups[1:], k=_ROWS - len(kept))
    # An update has something to change.
    values = [str(n) for n in range(10, 100) if str(n) != facts.get("value")]
    numbers = [rng.sample(values, _ROWS) for _ in table.numbers]
    rows = [list(row) for row in zip(names, groups, *numbers, strict=True)]
    rng.shuffle(rows)
    return rows


def _load(table: _Table, rows: list[list[str]]) -> sqlite3.Connection:
    database = sqlite3.connect(":memory:")
    columns = ", ".join(f"{column} TEXT" for column in table.columns)
    database.execute(f"CREATE TABLE {table.name} ({columns})")
    database.executemany(f"INSERT INTO {table.name} VALUES (?,?,?,?)", rows)
    return database


def digest(rows: list[list[str]]) -> str:
    """DBBench's hash of a table."""
    parts = [hashlib.md5(",".join(row).encode()).hexdigest()[:5] for row in rows]
    return hashlib.md5(",".join(sorted(parts)).encode()).hexdigest()
