"""Statements as agents write them: what MySQL answers, SQLite answers."""

from __future__ import annotations

import hashlib
import re
from datetime import date, datetime, timedelta
from decimal import Decimal

import pytest

from cqd_hub.errors import UserError
from cqd_hub.evaluation.databases._interface import Table
from cqd_hub.evaluation.databases.sqlite._databases import _rows

from .conftest import Handle


def one(db: Handle, sql: str) -> object:
    """The only cell of the answer."""
    answer = db.ask(sql)
    assert answer.error == ""
    assert len(answer.rows) == 1
    assert len(answer.rows[0]) == 1
    return answer.rows[0][0]


def names(db: Handle, condition: str) -> list[object]:
    answer = db.ask(f"SELECT name FROM people {condition}")
    assert answer.error == ""
    return [row[0] for row in answer.rows]


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("WHERE age > 30", ["Ann", "Zoë"]),  # text against a number: the number it begins with
        ("WHERE age < 10", ["bob", "Cy"]),
        ("WHERE age BETWEEN 9 AND 31", ["Ann", "bob"]),
        ("WHERE age = 31.0", ["Ann"]),
        ("WHERE age IN (9, 31)", ["Ann", "bob"]),
        ("WHERE age > '4'", ["bob", "Zoë", "Cy"]),  # text against text
        ("WHERE age = 0", ["Cy"]),
        ("WHERE age", ["Ann", "bob", "Zoë"]),
        ("WHERE NOT age", ["Cy"]),
        ("WHERE town = 'OSLO'", ["Ann", "Zoë"]),  # blind to case
        ("WHERE name = 'zoe'", ["Zoë"]),  # and accents
        ("WHERE name LIKE '%OE'", ["Zoë"]),
        ("WHERE name LIKE '_o_'", ["bob", "Zoë"]),
        ("WHERE name LIKE BINARY 'B%'", []),
        ("WHERE name NOT LIKE '%o%'", ["Ann", "Cy", "Dee"]),
        ("WHERE name NOT LIKE '%o%' ESCAPE '|' AND name NOT REGEXP 'n'", ["Cy", "Dee"]),
        ("WHERE age NOT IN (9, 31) AND age NOT BETWEEN 0 AND 1", ["Zoë"]),
        ("WHERE name REGEXP '^[a-b]'", ["Ann", "bob"]),
        ("WHERE town IN ('OSLO', 'x')", ["Ann", "Zoë"]),
        ("WHERE age <=> NULL", ["Dee"]),
        ("WHERE age IS NOT NULL AND town <> 'oslo'", ["bob", "Cy"]),
        ("WHERE town = 'oslo' || age = 9", ["Ann", "bob", "Zoë"]),  # || is OR
        ("WHERE age > 30 XOR town = 'oslo'", []),
        ("ORDER BY name", ["Ann", "bob", "Cy", "Dee", "Zoë"]),
        ("ORDER BY age", ["Dee", "Ann", "Zoë", "bob", "Cy"]),
        ("ORDER BY age + 0 DESC", ["Zoë", "Ann", "bob", "Cy", "Dee"]),
        ("ORDER BY CAST(age AS SIGNED) DESC LIMIT 1", ["Zoë"]),
        ("HAVING name > 'c' LIMIT 1, 1", ["Cy"]),
        ("WHERE town = (SELECT MAX(town) FROM people) ORDER BY 1", ["Ann", "Zoë"]),
        ("WHERE age = (SELECT MAX(age + 0) FROM people)", ["Zoë"]),
    ],
)
def test_conditions(db: Handle, condition: str, wanted: list[str]) -> None:
    assert names(db, condition) == wanted


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("1 / 2", Decimal("0.5000")),
        ("7 DIV 2", 3),
        ("7 MOD 4", 3),
        ("-7 % 4", -3),
        ("1 / 0", None),
        ("0.1 + 0.2 = 0.3", 1),
        ("1.50 + 1", Decimal("2.50")),
        ("'3 apples' + 2", 5.0),
        ("'a' 'b'", "ab"),
        ("'it\\'s'", "it's"),
        ("'a\\nb'", "a\nb"),
        ("'a''b'", "a'b"),
        ('"text"', "text"),
        ("'50%' LIKE '50\\%'", 1),
        ("'500' LIKE '50\\%'", 0),
        ("'a_b' LIKE 'a|_b' ESCAPE '|'", 1),
        ("NULL <=> NULL", 1),
        ("LENGTH('é')", 2),
        ("CHAR_LENGTH('é')", 1),
        ("LEFT('abc', 2)", "ab"),
        ("RIGHT('abc', 2)", "bc"),
        ("CONCAT('a', 1, 2.50)", "a12.50"),
        ("CONCAT('a', NULL)", None),
        ("CONCAT_WS('-', 'a', NULL, 'b')", "a-b"),
        ("SUBSTRING('abcdef', 2, 3)", "bcd"),
        ("SUBSTRING('abcdef' FROM -2)", "ef"),
        ("SUBSTRING_INDEX('a.b.c', '.', 2)", "a.b"),
        ("SUBSTRING_INDEX('a.b.c', '.', -1)", "c"),
        ("REPLACE('1,234', ',', '') + 0", 1234.0),
        ("TRIM(LEADING 'x' FROM 'xxa')", "a"),
        ("LPAD('5', 3, '0')", "005"),
        ("LOCATE('B', 'abc')", 2),
        ("IF(0, 'a', 'b')", "b"),
        ("IFNULL(NULL, 3)", 3),
        ("COALESCE(NULL, 'x')", "x"),
        ("NULLIF('a', 'A')", None),
        ("CASE WHEN 1 THEN 'a' ELSE 2 END", "a"),
        ("GREATEST(1, 3, 2)", 3),
        ("MD5('a')", hashlib.md5(b"a").hexdigest()),
        ("UPPER('abc')", "ABC"),
        ("ROUND(2.5)", Decimal("3")),
        ("ROUND(1234.5678, 2)", Decimal("1234.57")),
        ("TRUNCATE(1.999, 1)", Decimal("1.9")),
        ("FLOOR('1.7')", 1.0),
        ("ABS(-3)", 3),
        ("CAST('12abc' AS SIGNED)", 12),
        ("CAST('12.7' AS SIGNED)", 12),
        ("CAST(12.7 AS SIGNED)", 13),
        ("CAST('1.005' AS DECIMAL(10,2))", Decimal("1.01")),
        ("CONVERT('5', UNSIGNED)", 5),
        ("FORMAT(1234567.891, 2)", "1,234,567.89"),
        ("DATE('2020-3-4')", date(2020, 3, 4)),
        ("STR_TO_DATE('March 4, 2020', '%M %d, %Y')", date(2020, 3, 4)),
        ("STR_TO_DATE('nonsense', '%M %d, %Y')", None),
        ("DATE_FORMAT('2020-03-04', '%W %D %b %Y')", "Wednesday 4th Mar 2020"),
        ("YEAR('2020-03-04')", 2020),
        ("DATEDIFF('2020-03-04', '2020-02-28')", 5),
        ("DATE_ADD('2020-01-31', INTERVAL 1 MONTH)", "2020-02-29"),
        ("STR_TO_DATE('2020-01-31', '%Y-%m-%d') + INTERVAL 1 DAY", date(2020, 2, 1)),
        ("TIMESTAMPDIFF(YEAR, '2000-05-05', '2020-05-04')", 19),
        ("SEC_TO_TIME(99999999999999)", timedelta(hours=838, minutes=59, seconds=59)),
        ("SEC_TO_TIME(-1e15)", -timedelta(hours=838, minutes=59, seconds=59)),
        ("NOW()", datetime(2024, 1, 1)),  # the same for everybody
        ("EXTRACT(MONTH FROM '2020-03-04')", 3),
        ("x'41'", "A"),
        ("TRUE", 1),
        ("DATABASE()", "people"),
        ("(SELECT COUNT(*) FROM people)", 5),
        ("EXISTS(SELECT 1 FROM people)", 1),
        ("'b' IN (SELECT name FROM people)", 0),
        ("40.50 IN (SELECT age FROM people)", 1),
    ],
)
def test_expressions(db: Handle, expression: str, wanted: object) -> None:
    found = one(db, f"SELECT {expression}")
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("SELECT SUM(age), AVG(age), MAX(age), COUNT(age) FROM people", (80.5, 20.125, "n/a", 4)),
        ("SELECT SUM(CAST(age AS SIGNED)) FROM people", (Decimal("80"),)),
        ("SELECT AVG(CAST(age AS SIGNED)) FROM people", (Decimal("20.0000"),)),
        ("SELECT COUNT(DISTINCT town), COUNT(DISTINCT town, name) FROM people", (3, 5)),
        ("SELECT GROUP_CONCAT(name) FROM people", ("Ann,bob,Zoë,Cy,Dee",)),
        (
            "SELECT GROUP_CONCAT(DISTINCT town ORDER BY town DESC SEPARATOR '; ') FROM people",
            ("Oslo; Bergen; ",),
        ),
        ("SELECT SUM(town = 'oslo') FROM people", (Decimal("2"),)),
        ("SELECT MIN(name), MAX(name) FROM people", ("Ann", "Zoë")),
    ],
)
def test_aggregates(db: Handle, sql: str, wanted: tuple[object, ...]) -> None:
    answer = db.ask(sql)
    assert (answer.error, answer.rows) == ("", (wanted,))


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        (
            "SELECT town, COUNT(*) AS n FROM people GROUP BY town HAVING n > 1 ORDER BY n, town",
            [("Bergen", 2), ("Oslo", 2)],
        ),
        ("SELECT DISTINCT town FROM people", [("Oslo",), ("Bergen",), ("",)]),
        (
            "SELECT name FROM people WHERE age = 9 UNION SELECT 'BOB' UNION ALL SELECT 'bob'",
            [("bob",), ("bob",)],
        ),
        (
            "SELECT t.n FROM (SELECT town, COUNT(*) AS n FROM people GROUP BY town) AS t "
            "WHERE t.n > '1' ORDER BY town",
            [(2,), (2,)],
        ),
        (
            "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 3) "
            "SELECT n FROM c",
            [(1,), (2,), (3,)],
        ),
        (
            "SELECT a.name, b.name FROM people a JOIN people b ON a.town = b.town "
            "AND a.name < b.name ORDER BY 1",
            [("Ann", "Zoë"), ("bob", "Dee")],
        ),
        (
            "SELECT name, ROW_NUMBER() OVER (ORDER BY age + 0 DESC) FROM people LIMIT 2",
            [("Zoë", 1), ("Ann", 2)],
        ),
        ("SHOW TABLES", [("people",)]),
        (
            "DESCRIBE people",
            [(name, "text", "YES", "", None, "") for name in ("name", "age", "town")],
        ),
        ("SHOW COLUMNS FROM people LIKE 'a%'", [("age", "text", "YES", "", None, "")]),
        (
            "SELECT column_name, data_type FROM information_schema.columns "
            "WHERE table_name = 'people' AND table_schema = 'people' LIMIT 1",
            [("name", "text")],
        ),
        ("SELECT * FROM people.people LIMIT 0", []),
        ("INSERT INTO people (name) VALUES ('x'); SELECT COUNT(*) FROM people; SELECT 1", [(6,)]),
    ],
)
def test_queries(db: Handle, sql: str, wanted: list[tuple[object, ...]]) -> None:
    answer = db.ask(sql)
    assert answer.error == ""
    assert list(answer.rows) == wanted


@pytest.mark.parametrize(
    ("sql", "row"),
    [
        ("INSERT INTO people VALUES ('E', 12.50, 7)", ("E", "12.50", "7")),
        ("INSERT INTO people VALUES ('E', 007, 1/4)", ("E", "7", "0.2500")),
        ("INSERT INTO people (town, name) VALUES ('a\\\\b', TRUE)", ("1", None, "a\\b")),
        ("INSERT INTO people SET name = 'E', age = -5", ("E", "-5", None)),
        ("REPLACE INTO people VALUES ('E', NULL, '')", ("E", None, "")),
        ("INSERT INTO people SELECT 'E', COUNT(*), SUM(9.5) FROM people", ("E", "5", "47.5")),
    ],
)
def test_inserted_rows(db: Handle, sql: str, row: tuple[str | None, ...]) -> None:
    session = db.begin()
    assert db.execute(session, sql).error == ""
    assert db.execute(session, "SELECT * FROM people LIMIT 5, 9").rows == (row,)
    db.close(session)


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("UPDATE people SET age = 10 WHERE name = 'BOB'", "10"),
        ("UPDATE people SET age = age + 1 WHERE name = 'bob'", "10"),
        ("UPDATE people SET age = 1.50 WHERE name = 'bob'", "1.50"),
        ("UPDATE people AS p SET p.age = CONCAT(age, '!') WHERE p.town = 'bergen' LIMIT 1", "9!"),
        ("UPDATE people SET age = 'x' ORDER BY name LIMIT 2", "x"),
        ("DELETE FROM people WHERE name = 'Ann'", "9"),
    ],
)
def test_changes(db: Handle, sql: str, wanted: str) -> None:
    session = db.begin()
    assert db.execute(session, sql).error == ""
    assert db.execute(session, "SELECT age FROM people WHERE name = 'bob'").rows == ((wanted,),)
    db.close(session)


def test_names_that_mysql_allows(db: Handle) -> None:
    table = Table("2018 Game's `log`", ("1st", "select", "a`b"), (("1", "2", "3"),))
    answer = db.ask("SELECT 1st, `select`, `a``b` FROM `2018 Game's ``log```", table)
    assert (answer.error, answer.rows) == ("", (("1", "2", "3"),))


@pytest.mark.parametrize(
    ("sql", "number"),
    [
        ("SELECT nothing FROM people", "1054 (42S22): Unknown column 'nothing' in 'field list'"),
        ("SELECT 1 FROM people WHERE x = 1", "1054 (42S22): Unknown column 'x' in 'where clause'"),
        ("SELECT name AS n FROM people WHERE n = 1", "1054 (42S22): Unknown column 'n' in 'where"),
        ("SELECT 1 FROM people ORDER BY x", "1054 (42S22): Unknown column 'x' in 'order clause'"),
        ("SELECT rowid FROM people", "1054 (42S22): Unknown column 'rowid' in 'field list'"),
        ("SELECT * FROM nobody", "1146 (42S02): Table 'people.nobody' doesn't exist"),
        ("SELECT * FROM People", "1146 (42S02): Table 'people.People' doesn't exist"),
        ("SELECT * FROM sqlite_master", "1146 (42S02): Table 'people.sqlite_master' doesn't exist"),
        ("SELEC * FROM people", "1064 (42000): You have an error in your SQL syntax"),
        ("SELECT (1", "1064 (42000)"),
        ("SELECT 'open", "1064 (42000)"),
        ("", "1065 (42000): Query was empty"),
        ("SELECT name, COUNT(*) FROM people GROUP BY town", "1055 (42000): Expression #1 of"),
        ("SELECT * FROM people GROUP BY town", "1055 (42000): Expression"),
        ("SELECT name, COUNT(*) FROM people", "1140 (42000)"),
        ("SELECT name FROM people WHERE COUNT(*) > 1", "1111 (HY000): Invalid use of group"),
        ("SELECT town FROM people GROUP BY town HAVING age > 1", "1054 (42S22)"),
        ("SELECT name FROM people a, people b", "1052 (23000): Column 'name' in field list is am"),
        ("SELECT * FROM (SELECT 1)", "1248 (42000): Every derived table must have its own alias"),
        ("SELECT 1 UNION SELECT 1, 2", "1222 (21000)"),
        ("SELECT RANDOMBLOB(9)", "1305 (42000): FUNCTION people.RANDOMBLOB does not exist"),
        ("SELECT LEFT('a')", "1582 (42000): Incorrect parameter count"),
        ("SELECT 1 IN (SELECT name FROM people LIMIT 1)", "1235 (42000)"),
        ("INSERT INTO people VALUES (1, 2)", "1136 (21S01): Column count doesn't match value"),
        ("INSERT INTO people (x) VALUES (1)", "1054 (42S22): Unknown column 'x' in 'field list'"),
        ("UPDATE people SET age = 5 WHERE age = 31", "1292 (22007): Truncated incorrect DOUBLE"),
        ("CREATE TABLE people (a INT)", "1050 (42S01): Table 'people' already exists"),
        ("DROP TABLE nobody", "1051 (42S02): Unknown table 'people.nobody'"),
        ("DROP DATABASE other", "1008 (HY000)"),
        ("SELECT * FROM mysql.user", "1049 (42000): Unknown database 'mysql'"),
        ("SELECT 'a' REGEXP '('", "1139 (42000): Got error"),
    ],
)  # fmt: skip
def test_errors_in_mysqls_words(db: Handle, sql: str, number: str) -> None:
    answer = db.ask(sql)
    assert answer.error.startswith(number)
    assert answer.rows == ()


def test_a_statement_that_fails_changes_nothing(db: Handle) -> None:
    session = db.begin()
    before = db.digest(session)
    assert db.execute(session, "UPDATE people SET age = 1 WHERE age + 1 > 5").error[:4] == "1292"
    assert db.digest(session) == before
    db.close(session)


def test_types_of_an_agents_own_tables(db: Handle) -> None:
    session = db.begin()
    script = [
        ("CREATE TABLE t (id INT PRIMARY KEY, word VARCHAR(3) NOT NULL, d DECIMAL(5,2))", ""),
        ("INSERT INTO t VALUES (1, 'a', 2.5), ('2', 'b', '1')", ""),
        ("INSERT INTO t VALUES (1, 'a', 2)", "1062"),
        ("INSERT INTO t VALUES ('x', 'a', 2)", "1366"),
        ("INSERT INTO t VALUES (3, 'abcd', 2)", "1406"),
        ("INSERT INTO t VALUES (3, NULL, 2)", "1048"),
        ("ALTER TABLE t ADD COLUMN more TEXT, DROP COLUMN d", ""),
        ("ALTER TABLE t RENAME COLUMN word TO letter", ""),
    ]
    for sql, error in script:
        assert db.execute(session, sql).error[:4] == error, sql
    answer = db.execute(session, "SELECT * FROM t WHERE id > '1'")
    assert answer.rows == ((2, "b", None),)
    db.close(session)


def test_transactions(db: Handle) -> None:
    session = db.begin()
    for sql in ("START TRANSACTION", "DELETE FROM people", "ROLLBACK", "COMMIT"):
        assert db.execute(session, sql).error == ""
    assert db.execute(session, "SELECT COUNT(*) FROM people").rows == ((5,),)
    db.close(session)


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def test_digest(db: Handle) -> None:
    rows = ["Ann,31,Oslo", "bob,9,Bergen", "Zoë,40.5,oslo", "Cy,n/a,", "Dee,Bergen"]
    wanted = md5(",".join(sorted(md5(row)[:5] for row in rows)))
    session = db.begin()
    assert db.digest(session) == wanted
    db.execute(session, "ALTER TABLE people ADD COLUMN more TEXT")
    db.execute(session, "UPDATE people SET more = 'x'")
    assert db.digest(session) == wanted
    db.execute(session, "ALTER TABLE people DROP COLUMN town")
    assert db.digest(session) == ""
    assert db.digest(session, "nobody") == ""
    db.close(session)


def test_what_the_manifest_says(db: Handle) -> None:
    assert db.databases.kind == "sqlite"
    assert re.match(
        r"sqlite: SQLite 3\.\d+\.\d+ in memory, MySQL translated by sqlglot \d.*strict mode",
        db.databases.guarantees,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        Table("t", ("a", "A"), ()),
        Table("t", ("a", "b"), (("1",),)),
        Table("t", (), ()),
        Table("", ("a",), ()),
        Table("sqlite_x", ("a",), ()),
    ],
)
def test_tables_that_cannot_be_made(db: Handle, wrong: Table) -> None:
    with pytest.raises(UserError, match="table"):
        db.begin(wrong)
    db.still_right()


@pytest.mark.parametrize("kind", ["time", "decimal", "int", "datetime", "binary", "text"])
def test_whatever_a_box_says_becomes_cells(kind: str) -> None:
    for rows in (
        [["9" * 30 + ":00:00"]], [[{"b": "no"}]], [[{"b": 1}]], [[[1, 2]]], [1], [[], [1]], "x",
        None, [[1e400]], [[10**400]], [[True]], [["2020-01-01"], ["x", "y"]],
    ):  # fmt: skip
        assert isinstance(_rows(rows, [[kind, 2, ""]]), tuple)


def test_the_lenient_mode() -> None:
    from .conftest import handle

    for db in handle("bubblewrap", strict=False):
        answer = db.ask("UPDATE people SET age = 5 WHERE age = 31; SELECT age FROM people LIMIT 1")
        assert (answer.error, answer.rows) == ("", (("5",),))
