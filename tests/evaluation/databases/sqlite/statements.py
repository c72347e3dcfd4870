# ruff: noqa: E501 -- a kind a line reads best
"""Statements as agents write them, drawn by kind over any table of text."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from cqd_hub.evaluation.databases._interface import Table

_NUMBER = re.compile(r"-?\d{1,9}(\.\d{1,4})?")


def table(seed: int) -> Table:
    """A table of mixed text: names with accents, numbers, dates, blanks, symbols."""
    draw = random.Random(seed)
    makers: list[Callable[[], str]] = [
        lambda: draw.choice(
            ("Ann", "ann", "Zoë", "Zoe", "Bob", "Łukasz", "José", "Jose", "Müller", "O'Neil",
             "Smith, J.", "de la Cruz", "Æthel", "Straße", "naïve", "A-1", "A – 1", "a_b", "50%",
             "x\\y", "(x)", "*", "")
        ),
        lambda: str(draw.randint(0, 40)),
        lambda: f"{draw.uniform(-5, 2000):.2f}",
        lambda: draw.choice(("n/a", "12 km", "7th", "1,234", "3-4", "W 3-1", "0", "-2", "05")),
        lambda: f"{draw.randint(1950, 2022)}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}",
        lambda: f"{draw.choice(('January', 'May', 'August'))} {draw.randint(1, 28)}, "
                f"{draw.randint(1950, 2022)}",
        lambda: f"{draw.randint(1, 59)}:{draw.randint(10, 59)}",
    ]  # fmt: skip
    names = draw.sample(
        ["Name", "Points", "Score", "Date", "No.", "1st", "home team", "Result", "Rank (2)", "Año",
         "select", "Time"], draw.randint(3, 6)
    )  # fmt: skip
    columns = [draw.choice(makers) for _ in names]
    rows = [tuple(make() for make in columns) for _ in range(draw.randint(3, 30))]
    return Table(draw.choice(["games", "US Open", "List_of 7 things"]), tuple(names), tuple(rows))


def statements(about: Table, seed: int, each: int = 1) -> Iterator[tuple[str, str]]:
    """Kind and statement, *each* of every kind."""
    for number, (kind, make) in enumerate(KINDS.items()):
        for turn in range(each):
            yield kind, make(_Picker(about, random.Random(f"{seed}-{number}-{turn}")))


class _Picker:
    """Names and values of one table."""

    def __init__(self, about: Table, draw: random.Random) -> None:
        self.about, self.draw = about, draw
        self.t = _quoted(about.name)
        order = draw.sample(range(len(about.columns)), len(about.columns))
        self.places = order
        self.a, self.b, self.c = (_quoted(about.columns[order[k % len(order)]]) for k in range(3))
        numeric = [place for place in order if self._share(place) > 0.6]
        self.n = _quoted(about.columns[numeric[0] if numeric else order[0]])
        self.number_place = numeric[0] if numeric else order[0]

    def _share(self, place: int) -> float:
        cells = [row[place] or "" for row in self.about.rows]
        return sum(bool(_NUMBER.fullmatch(cell)) for cell in cells) / max(1, len(cells))

    def raw(self, which: int = 0) -> str:
        place = self.places[which % len(self.places)]
        cells = [row[place] or "" for row in self.about.rows]
        return self.draw.choice(cells) if cells else ""

    def value(self, which: int = 0) -> str:
        return text(self.raw(which))

    def number(self) -> str:
        cells = [row[self.number_place] or "" for row in self.about.rows]
        found = [cell for cell in cells if re.fullmatch(r"\d{1,6}(\.\d{1,2})?", cell)]
        return self.draw.choice(found) if found else str(self.draw.randint(0, 50))

    def piece(self, which: int = 0) -> str:
        cell = re.sub(r"[%_\\]", "", self.raw(which))
        return cell[: self.draw.randint(1, 4)]

    def sign(self) -> str:
        return self.draw.choice((">", "<", ">=", "<=", "=", "<>"))

    def new_row(self) -> str:
        cells = [
            self.draw.choice((text(f"new {self.draw.randint(1, 9)}"), self.number(), "NULL", "1.50",
                              "'it''s'", "'a\\nb'"))
            for _ in self.about.columns
        ]  # fmt: skip
        return ", ".join(cells)


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def text(value: str) -> str:
    """A literal in MySQL's way."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


KINDS: dict[str, Callable[[_Picker], str]] = {
    "all": lambda p: f"SELECT * FROM {p.t}",
    "all, some": lambda p: f"SELECT * FROM {p.t} LIMIT {p.draw.randint(1, 6)}",
    "equal text": lambda p: f"SELECT {p.a} FROM {p.t} WHERE {p.b} = {p.value(1)}",
    "equal, other case": lambda p: f"SELECT {p.a} FROM {p.t} WHERE {p.b} = {p.value(1).upper()}",
    "double quotes": lambda p: (
        f'SELECT {p.a} FROM {p.t} WHERE {p.b} = "{re.sub(chr(92) * 2 + "|" + chr(34), "", p.raw(1))}"'
    ),
    "and": lambda p: f"SELECT * FROM {p.t} WHERE {p.a} = {p.value()} AND {p.b} = {p.value(1)}",
    "or not": lambda p: f"SELECT {p.a} FROM {p.t} WHERE {p.a} = {p.value()} OR NOT {p.b} = 'x'",
    "number": lambda p: f"SELECT {p.a} FROM {p.t} WHERE {p.n} {p.sign()} {p.number()}",
    "number, any column": lambda p: f"SELECT * FROM {p.t} WHERE {p.b} {p.sign()} {p.number()}",
    "number as text": lambda p: f"SELECT {p.a} FROM {p.t} WHERE {p.n} {p.sign()} '{p.number()}'",
    "between": lambda p: f"SELECT {p.a} FROM {p.t} WHERE {p.n} BETWEEN {p.number()} AND 900",
    "between text": lambda p: f"SELECT {p.a} FROM {p.t} WHERE {p.b} BETWEEN 'b' AND {p.value(1)}",
    "in": lambda p: f"SELECT {p.a} FROM {p.t} WHERE {p.b} IN ({p.value(1)}, {p.value(1)}, 'x')",
    "in numbers": lambda p: f"SELECT {p.a} FROM {p.t} WHERE {p.n} IN ({p.number()}, {p.number()})",
    "not in": lambda p: f"SELECT COUNT(*) FROM {p.t} WHERE {p.b} NOT IN ({p.value(1)})",
    "like": lambda p: f"SELECT {p.a} FROM {p.t} WHERE {p.b} LIKE {text('%' + p.piece(1) + '%')}",
    "like start": lambda p: f"SELECT {p.a} FROM {p.t} WHERE {p.b} LIKE {text(p.piece(1) + '%')}",
    "like one": lambda p: f"SELECT {p.a} FROM {p.t} WHERE {p.b} LIKE {text('_' + p.raw(1)[1:])}",
    "not like": lambda p: f"SELECT COUNT(*) FROM {p.t} WHERE {p.b} NOT LIKE '%{p.draw.choice('aeo1')}%'",
    "regexp": lambda p: f"SELECT {p.a} FROM {p.t} WHERE {p.b} REGEXP '^[a-m0-3]'",
    "null": lambda p: f"SELECT COUNT(*) FROM {p.t} WHERE {p.a} IS NULL OR {p.b} = ''",
    "count": lambda p: f"SELECT COUNT(*), COUNT({p.a}) FROM {p.t} WHERE {p.n} > {p.number()}",
    "count distinct": lambda p: f"SELECT COUNT(DISTINCT {p.a}) AS n FROM {p.t}",
    "sum": lambda p: f"SELECT SUM({p.n}) FROM {p.t}",
    "avg": lambda p: f"SELECT AVG({p.n}) FROM {p.t} WHERE {p.b} <> {p.value(1)}",
    "sum cast": lambda p: f"SELECT SUM(CAST({p.n} AS SIGNED)) FROM {p.t}",
    "avg cast": lambda p: f"SELECT AVG(CAST({p.n} AS DECIMAL(10,2))) FROM {p.t}",
    "max": lambda p: f"SELECT MAX({p.a}), MIN({p.b}) FROM {p.t}",
    "max number": lambda p: f"SELECT MAX({p.n} + 0), MIN(CAST({p.n} AS UNSIGNED)) FROM {p.t}",
    "max row": lambda p: f"SELECT {p.a} FROM {p.t} WHERE {p.b} = (SELECT MAX({p.b}) FROM {p.t})",
    "order": lambda p: f"SELECT {p.a}, {p.b} FROM {p.t} ORDER BY {p.a}, {p.b}, {p.c}",
    "order number": lambda p: f"SELECT {p.n} FROM {p.t} ORDER BY {p.n} + 0 DESC, {p.n} LIMIT 3",
    "order cast": lambda p: (
        f"SELECT {p.n} FROM {p.t} ORDER BY CAST({p.n} AS DECIMAL(10,2)) DESC, {p.n} LIMIT 1"
    ),
    "order alias": lambda p: f"SELECT LENGTH({p.a}) AS n FROM {p.t} ORDER BY n DESC LIMIT 5",
    "distinct": lambda p: f"SELECT DISTINCT {p.a} FROM {p.t}",
    "group": lambda p: f"SELECT {p.a}, COUNT(*) FROM {p.t} GROUP BY {p.a} ORDER BY {p.a}",
    "group having": lambda p: (
        f"SELECT {p.a}, COUNT(*) AS n FROM {p.t} GROUP BY {p.a} HAVING n > 1 ORDER BY n DESC, {p.a}"
    ),
    "group sum": lambda p: (
        f"SELECT {p.a}, SUM({p.n}) s FROM {p.t} GROUP BY {p.a} ORDER BY s DESC, {p.a} LIMIT 4"
    ),
    "group wrong": lambda p: f"SELECT {p.a}, {p.b}, COUNT(*) FROM {p.t} GROUP BY {p.a}",
    "aggregate wrong": lambda p: f"SELECT {p.a}, MAX({p.b}) FROM {p.t}",
    "subquery": lambda p: (
        f"SELECT {p.a} FROM {p.t} WHERE {p.b} IN (SELECT {p.b} FROM {p.t} WHERE {p.n} > {p.number()}) "
        f"ORDER BY {p.a}, {p.b}, {p.c}"  # of a semi-join the order is each engine's own
    ),
    "derived": lambda p: (
        f"SELECT COUNT(*) FROM (SELECT {p.a}, COUNT(*) AS n FROM {p.t} GROUP BY {p.a}) x WHERE n > 1"
    ),
    "union": lambda p: (
        f"SELECT {p.a} FROM {p.t} WHERE {p.b} = {p.value(1)} UNION SELECT {p.a} FROM {p.t} "
        f"WHERE {p.n} < {p.number()}"
    ),
    "join": lambda p: (
        f"SELECT COUNT(*) FROM {p.t} x JOIN {p.t} y ON x.{p.a} = y.{p.a} AND x.{p.n} > y.{p.n}"
    ),
    "case": lambda p: (
        f"SELECT {p.a}, CASE WHEN {p.n} > {p.number()} THEN 'high' WHEN {p.n} = '' THEN NULL "
        f"ELSE 'low' END FROM {p.t}"
    ),
    "if": lambda p: f"SELECT SUM(IF({p.n} > {p.number()}, 1, 0)) FROM {p.t}",
    "arithmetic": lambda p: f"SELECT {p.n} * 2, {p.n} / 4, {p.n} - 1, -{p.n}, {p.n} % 7 FROM {p.t}",
    "literals": lambda p: f"SELECT 7 / 2, 7 DIV 2, 1.5 * 2.25, 10 % 3, 0.1 + 0.2, {p.number()} / 3",
    "round": lambda p: f"SELECT ROUND(AVG({p.n}), 2), ROUND({p.number()} / 7, 3) FROM {p.t}",
    "length": lambda p: f"SELECT LENGTH({p.a}), CHAR_LENGTH({p.a}), REVERSE({p.a}) FROM {p.t}",
    "left": lambda p: f"SELECT LEFT({p.a}, 3), RIGHT({p.a}, 2), MID({p.a}, 2, 2) FROM {p.t}",
    "concat": lambda p: f"SELECT CONCAT({p.a}, ' - ', {p.b}, 1.50), CONCAT_WS(',', {p.a}, 2) FROM {p.t}",
    "index": lambda p: f"SELECT SUBSTRING_INDEX({p.a}, ' ', 1), LOCATE('A', {p.a}) FROM {p.t}",
    "case of letters": lambda p: f"SELECT LOWER({p.a}) FROM {p.t} WHERE UPPER({p.b}) = {p.value(1)}",
    "replace": lambda p: f"SELECT SUM(REPLACE({p.n}, ',', '')) FROM {p.t}",
    "group concat": lambda p: f"SELECT GROUP_CONCAT({p.a} SEPARATOR '; ') FROM {p.t} WHERE {p.n} > 3",
    "date": lambda p: f"SELECT YEAR({p.a}), MONTH({p.a}) FROM {p.t} WHERE {p.a} LIKE '____-__-__'",
    "read date": lambda p: (
        f"SELECT STR_TO_DATE({p.a}, '%M %d, %Y') FROM {p.t} WHERE {p.a} LIKE '% __, ____'"
    ),
    "format date": lambda p: "SELECT DATE_FORMAT('2009-03-07', '%W, %e %M %y'), DATEDIFF('2009-03-07', '2008-03-07')",
    "add days": lambda p: (
        f"SELECT DATE_ADD({p.a}, INTERVAL 3 DAY), {p.a} + INTERVAL 1 MONTH, DATEDIFF({p.a}, "
        f"'2000-01-01'), DAYNAME({p.a}) FROM {p.t} WHERE {p.a} LIKE '____-__-__'"
    ),
    "order date": lambda p: (
        f"SELECT {p.a} FROM {p.t} WHERE {p.a} LIKE '% __, ____' "
        f"ORDER BY STR_TO_DATE({p.a}, '%M %d, %Y') DESC, {p.a} LIMIT 3"
    ),
    "date compared": lambda p: (
        f"SELECT COUNT(*) FROM {p.t} WHERE STR_TO_DATE({p.a}, '%M %d, %Y') > '1990-06-01' "
        f"OR YEAR({p.a}) = 1999"
    ),
    "functions of text": lambda p: (
        f"SELECT TRIM({p.a}), LPAD({p.a}, 5, '*'), REPEAT({p.a}, 2), INSTR({p.a}, 'n'), "
        f"ASCII({p.a}), HEX({p.a}), REPLACE({p.a}, 'a', 'b'), FIND_IN_SET('x', {p.a}), "
        f"STRCMP({p.a}, {p.b}), FIELD({p.a}, 'Ann', {p.value()}), MD5({p.a}) FROM {p.t}"
    ),
    "functions of numbers": lambda p: (
        f"SELECT ABS({p.n}), FLOOR({p.n}), CEIL({p.n}), ROUND({p.n}, 1), ROUND({p.n}), "
        f"SIGN({p.n}), SQRT({p.n}), POW({p.n}, 2), TRUNCATE({p.n}, 1), MOD({p.n}, 5), "
        f"{p.n} DIV 3, GREATEST({p.n} + 0, 5), FORMAT({p.n}, 1) FROM {p.t}"
    ),
    "functions of decimals": lambda p: (
        "SELECT ABS(-1.50), FLOOR(1.5), CEIL(1.2), ROUND(2.675, 2), TRUNCATE(2.679, 2), 5.0 / 3, "
        f"1.25 * 3, MOD(7.5, 2), GREATEST(1, 2.5), COALESCE(1, 2.50), CAST({p.number()} AS CHAR), "
        "CONCAT(1.10, 2), IF(1, 1.5, 2), CAST(2.5 AS SIGNED), CAST('x' AS DECIMAL(5,1))"
    ),
    "casts": lambda p: (
        f"SELECT CAST({p.a} AS SIGNED), CAST({p.a} AS DECIMAL(10,1)), CAST({p.a} AS CHAR(2)), "
        f"CAST({p.n} AS DOUBLE), {p.a} + 0 FROM {p.t}"
    ),
    "truth": lambda p: (
        f"SELECT {p.a} AND 1, {p.b} OR 0, NOT {p.a}, {p.a} XOR 1, {p.a} IS TRUE, {p.a} <=> {p.b}, "
        f"{p.a} = {p.b}, {p.a} < {p.b}, ISNULL({p.a}), !{p.a} FROM {p.t}"
    ),
    "compared columns": lambda p: (
        f"SELECT COUNT(*) FROM {p.t} WHERE {p.a} > {p.b} OR {p.a} + 0 = {p.n} OR {p.b} < {p.n} * 2"
    ),
    "self less": lambda p: (
        f"SELECT {p.a}, (SELECT COUNT(*) FROM {p.t} y WHERE y.{p.n} + 0 > x.{p.n} + 0) + 1 AS place "
        f"FROM {p.t} x ORDER BY place, {p.a}, {p.b}, {p.c} LIMIT 5"
    ),
    "exists": lambda p: (
        f"SELECT COUNT(*) FROM {p.t} x WHERE EXISTS (SELECT 1 FROM {p.t} y WHERE y.{p.a} = x.{p.a} "
        f"AND y.{p.b} <> x.{p.b})"
    ),
    "with": lambda p: (
        f"WITH c AS (SELECT {p.a} AS k, COUNT(*) AS n, AVG({p.n}) AS m FROM {p.t} GROUP BY {p.a}) "
        "SELECT k, n, m FROM c WHERE n >= 1 ORDER BY n DESC, k"
    ),
    "group by place": lambda p: (
        f"SELECT LEFT({p.a}, 1) AS l, COUNT(DISTINCT {p.b}), MAX({p.n} + 0) FROM {p.t} GROUP BY 1 "
        "ORDER BY 1"
    ),
    "group by expression": lambda p: (
        f"SELECT LENGTH({p.a}), COUNT(*), SUM({p.n}) / COUNT(*) FROM {p.t} GROUP BY LENGTH({p.a}) "
        f"ORDER BY LENGTH({p.a}) DESC"
    ),
    "having wrong": lambda p: f"SELECT {p.a} FROM {p.t} GROUP BY {p.a} HAVING {p.b} = 'x'",
    "alias in where": lambda p: f"SELECT {p.a} AS zz FROM {p.t} WHERE zz = 'x'",
    "aggregate in where": lambda p: f"SELECT {p.a} FROM {p.t} WHERE COUNT(*) > 1",
    "case of table": lambda p: f"SELECT * FROM {p.t.upper()}",
    "percent": lambda p: f"SELECT ROUND(100 * SUM({p.n} > {p.number()}) / COUNT(*), 1) FROM {p.t}",
    "spread": lambda p: f"SELECT ROUND(STDDEV({p.n}), 6), ROUND(VARIANCE({p.n}), 4) FROM {p.t}",
    "concat in order": lambda p: (
        f"SELECT GROUP_CONCAT(DISTINCT {p.a} ORDER BY {p.a} DESC SEPARATOR '|') FROM {p.t}"
    ),
    "update case": lambda p: (
        f"UPDATE {p.t} SET {p.a} = CASE WHEN {p.b} = {p.value(1)} THEN 1.50 ELSE {p.a} END"
    ),
    "update text": lambda p: (
        f"UPDATE {p.t} SET {p.a} = CONCAT({p.a}, 1 / 3, ' ', UPPER({p.b})), {p.b} = LENGTH({p.b}) "
        f"WHERE {p.c} <> {p.value(2)}"
    ),
    "update limit": lambda p: f"UPDATE {p.t} SET {p.a} = NULL ORDER BY {p.a}, {p.b}, {p.c} LIMIT 2",
    "insert select": lambda p: (
        f"INSERT INTO {p.t} ({p.a}) SELECT COUNT(*) FROM {p.t} WHERE {p.b} = {p.value(1)}"
    ),
    "insert expressions": lambda p: (
        f"INSERT INTO {p.t} ({p.a}, {p.b}) VALUES (1 + 1.25, CONCAT('a', 7)), (-0.50, 1e3)"
    ),
    "delete like": lambda p: f"DELETE FROM {p.t} WHERE {p.a} LIKE '%{p.draw.choice('ae1')}%'",
    "coalesce": lambda p: f"SELECT COALESCE(NULLIF({p.a}, ''), 'none') FROM {p.t} LIMIT 5",
    "window": lambda p: (
        f"SELECT {p.a}, ROW_NUMBER() OVER (ORDER BY {p.a}, {p.b}, {p.c}) FROM {p.t} "
        f"ORDER BY {p.a}, {p.b}, {p.c}"
    ),
    "show tables": lambda p: "SHOW TABLES",
    "describe": lambda p: f"DESCRIBE {p.t}",
    "no column": lambda p: f"SELECT nothing FROM {p.t} WHERE {p.a} = 'x'",
    "no column in where": lambda p: f"SELECT {p.a} FROM {p.t} WHERE nothing = 'x'",
    "no table": lambda p: "SELECT * FROM nowhere",
    "no syntax": lambda p: f"SELECT FROM WHERE {p.t}",
    "brackets": lambda p: f"SELECT [{p.a[1:-1]}] FROM {p.t}",
    "two": lambda p: f"SELECT COUNT(*) FROM {p.t}; SELECT * FROM {p.t}",
    "insert": lambda p: f"INSERT INTO {p.t} VALUES ({p.new_row()})",
    "insert two": lambda p: f"INSERT INTO {p.t} VALUES ({p.new_row()}), ({p.new_row()})",
    "insert some": lambda p: f"INSERT INTO {p.t} ({p.a}, {p.b}) VALUES ({p.number()}, {p.value(1)})",
    "insert wrong": lambda p: f"INSERT INTO {p.t} VALUES (1)",
    "update": lambda p: f"UPDATE {p.t} SET {p.a} = {text('new ' + p.piece())} WHERE {p.b} = {p.value(1)}",
    "update number": lambda p: f"UPDATE {p.t} SET {p.a} = {p.number()} WHERE {p.b} LIKE '%{p.draw.choice('aei12')}%'",
    "update strict": lambda p: f"UPDATE {p.t} SET {p.a} = 'x' WHERE {p.n} > {p.number()}",
    "update sum": lambda p: f"UPDATE {p.t} SET {p.n} = {p.n} + 1 WHERE {p.b} = {p.value(1)}",
    "delete": lambda p: f"DELETE FROM {p.t} WHERE {p.a} = {p.value()}",
}  # fmt: skip
CHANGES = ("INSERT", "UPDATE", "DELETE")
