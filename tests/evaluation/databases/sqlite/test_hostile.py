"""Statements that attack: each is answered, and the next session gets its right answers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from cqd_hub.evaluation.databases._interface import DatabaseLost, Table
from cqd_hub.evaluation.databases.sqlite import SqlLimits
from cqd_hub.evaluation.databases.sqlite._server import Server
from cqd_hub.evaluation.databases.sqlite.box import sql_server
from tests.processes import kill_tree

from .conftest import PEOPLE, Handle, handle

LIMITS = SqlLimits(
    statement_steps=2_000_000, statement_seconds=1.0, database_mb=2, memory_mb=64, hang_seconds=30.0
)
WIDE = Table("wide", ("a",), tuple((str(number),) for number in range(100)))


@pytest.fixture(
    scope="module",
    params=["bubblewrap", "landlock", pytest.param("docker", marks=pytest.mark.slow)],
)
def box(request: pytest.FixtureRequest) -> Iterator[Handle]:
    yield from handle(request.param, limits=LIMITS)


@pytest.fixture(autouse=True)
def _next_session_unharmed(box: Handle) -> Iterator[None]:
    neighbour = box.begin()
    before = box.digest(neighbour)
    yield
    assert box.digest(neighbour) == before
    box.close(neighbour)
    box.still_right()


ENDLESS = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) "


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        (ENDLESS + "SELECT MAX(n) FROM c", "3024"),
        (ENDLESS + "SELECT n FROM c", ""),  # only the first rows are fetched
        (ENDLESS + "SELECT COUNT(*) FROM c WHERE n LIKE '%a%b%'", "3024"),
        ("SELECT COUNT(*) FROM wide a, wide b, wide c, wide d, wide e, wide f", "3024"),
        ("SELECT * FROM wide a, wide b, wide c", ""),
        ("SELECT CONCAT('" + "a" * 40 + "', '!') REGEXP '^(a+)+$'", "3024"),
        ("SELECT zeroblob(1000000000)", "1305"),
        ("SELECT randomblob(1000000000)", "1305"),
        ("SELECT load_extension('x')", "1305"),
        ("SELECT readfile('/etc/passwd'), writefile('/tmp/x', 'y')", "1305"),
        ("SELECT LOAD_FILE('/etc/passwd')", "1305"),
        ("SELECT printf('%1000000000d', 1)", "1305"),
        ("SELECT fts3_tokenizer('x')", "1305"),
        ("SELECT my_num(1), sqlite_version()", "1305"),
        ("SELECT * FROM sqlite_schema", "1146"),
        ("SELECT * FROM pragma_database_list", "1146"),
        ("SELECT 1 INTO OUTFILE '/tmp/x'", "1064"),
        ("LOAD DATA INFILE '/etc/passwd' INTO TABLE wide", "1064"),
        ("ATTACH DATABASE '/tmp/x.db' AS x", "1064"),
        ("DETACH DATABASE main", "1064"),
        ("PRAGMA writable_schema = 1", "1064"),
        ("PRAGMA temp_store_directory = '/'", "1064"),
        ("VACUUM INTO '/tmp/x'", "1064"),
        ("REINDEX", "1064"),
        ("CREATE VIRTUAL TABLE x USING fts5(a)", "1142"),
        ("CREATE VIEW x AS SELECT 1", "1142"),
        ("GRANT ALL ON *.* TO root", "1142"),
        ("DROP DATABASE people", "1008"),
        ("SHUTDOWN", "1064"),
        ("KILL 1", "1064"),
        ("SELECT SLEEP(1000)", ""),
        ("SELECT BENCHMARK(1000000000, MD5('x'))", ""),
        ("SELECT * FROM people", "1146"),  # another session's table
        ("SELECT * FROM people.people", "1049"),
        ("SELECT " + "(" * 6000 + "1", "1436"),
        ("SELECT " + "(" * 3000 + "1" + ")" * 3000, "1436"),
        ("SELECT " + "NOT " * 3000 + "1", "1436"),
        ("SELECT 1" + "+1" * 3000, "1436"),
        ("SELECT 1" + " UNION SELECT 1" * 900, "1436"),
        ("SELECT 1" + " OR 1" * 3000, "1436"),
        ("SELECT * FROM wide" + " JOIN wide" * 1000, "1436"),  # takes the parser for ever
        ("SELECT '" + "x" * 10_000_000 + "'", "1153"),
        ("x" * 10_000_000, "1153"),
        ("SELECT '\ud800\udfff\x00'", ""),
        ("\x00\x01", "1064"),
        (";;;;", "1065"),
    ],
)
def test_answered(box: Handle, sql: str, error: str) -> None:
    answer = box.ask(sql, WIDE)
    assert answer.error[:4] == error
    assert len(answer.rows) <= LIMITS.rows


@pytest.mark.parametrize(
    "script",
    [
        ["DROP TABLE wide", "SELECT * FROM wide"],
        ["DROP DATABASE wide", "SHOW TABLES"],
        ["ALTER TABLE wide RENAME TO people", "DELETE FROM people"],
        ["ALTER TABLE wide DROP COLUMN a", "ALTER TABLE wide ADD COLUMN b INT"],
        ["CREATE TABLE t AS SELECT x.a FROM wide x, wide y, wide z", "DROP TABLE t"],
        ["INSERT INTO wide SELECT REPEAT('x', 1000000) FROM wide"] * 3,
        ["UPDATE wide SET a = REPEAT(a, 500000)", "SELECT GROUP_CONCAT(a) FROM wide"],
        ["SELECT x.a FROM wide x, wide y, wide z ORDER BY REPEAT(x.a, 100000)"],
        ["BEGIN", "DELETE FROM wide", "BEGIN", "ROLLBACK", "ROLLBACK"],
        [f"CREATE TABLE t{number} (a TEXT)" for number in range(300)],
    ],
)
def test_own_database_only(box: Handle, script: list[str]) -> None:
    session = box.begin(WIDE)
    for sql in script:
        box.execute(session, sql)
    box.close(session)


def test_a_full_database_is_said_to_be(box: Handle) -> None:
    session = box.begin(WIDE)
    errors = {
        box.execute(session, "INSERT INTO wide SELECT * FROM wide").error[:4] for _ in range(20)
    }
    assert errors <= {"", "1114", "3024"}
    assert errors != {""}
    box.close(session)


@pytest.mark.parametrize("change", ["UPDATE wide SET a = ({})", "SELECT ({})"])
def test_a_digest_after_a_statement_that_took_too_long(box: Handle, change: str) -> None:
    session = box.begin(WIDE)
    before = box.digest(session, "wide")
    endless = "SELECT COUNT(*) FROM wide b, wide c, wide d, wide e"
    assert box.execute(session, change.format(endless)).error.startswith("3024")
    assert box.digest(session, "wide") == before
    box.close(session)


def test_a_digest_that_takes_too_long_is_none() -> None:
    server = sql_server._Session({**asdict(LIMITS), "statement_steps": 0}, [["t", ["a"], [["1"]]]])
    before = signal.signal(signal.SIGPROF, sql_server._expire)
    try:
        server._progress = lambda: 1  # type: ignore[method-assign]
        server.connection.set_progress_handler(server._progress, 1)
        assert server.digest("t", ["a"]) == ""
    finally:
        signal.signal(signal.SIGPROF, before)
        server.close()


def test_rows_and_bytes_of_a_result(box: Handle) -> None:
    assert len(box.ask("SELECT 1 FROM wide x, wide y, wide z", WIDE).rows) == LIMITS.rows
    answer = box.ask("SELECT REPEAT('x', 100000) FROM wide", WIDE)
    assert 0 < len(answer.rows) < 20


def test_ask_the_server_directly(box: Handle) -> None:
    """What the translator would never write is refused as well."""
    hostile = [
        "ATTACH DATABASE ':memory:' AS x",
        "PRAGMA hard_heap_limit = 0",
        "PRAGMA max_page_count = 1073741823",
        "PRAGMA writable_schema = 1",
        "SELECT load_extension('x')",
        "SELECT randomblob(1000000000)",
        "SELECT length(zeroblob(1000000000))",
        "VACUUM INTO '/tmp/x'",
        "CREATE VIRTUAL TABLE x USING fts5(a)",
        "CREATE TEMP VIEW x AS SELECT 1",
        "SELECT * FROM pragma_database_list",
        "SELECT " + "1+" * 600 + "1",
    ]
    session: Any = box.begin(WIDE)
    for sql in hostile:
        request = {"session": session._number, "statements": [{"sql": sql}]}
        reply = box.loop.run_until_complete(session._server.ask("run", request))
        assert "error" in reply, sql
    box.close(session)


def kill(server: Server) -> None:
    assert server._process is not None
    kill_tree(server._process.pid)


def test_a_server_that_dies(box: Handle) -> None:
    """Its sessions go on where they were, on another."""
    sessions: list[Any] = [box.begin() for _ in range(3)]
    for place, session in enumerate(sessions):
        box.execute(session, f"UPDATE people SET age = 'a{place}' WHERE name = 'Ann'")
    server = sessions[0]._server
    kill(server)
    for place, session in enumerate(sessions):
        assert box.execute(session, "SELECT age FROM people LIMIT 1").rows == ((f"a{place}",),)
        box.close(session)


def test_a_statement_that_ends_its_server_twice(box: Handle, monkeypatch: Any) -> None:
    session: Any = box.begin()
    neighbour: Any = box.begin()
    asked = Server.ask

    async def ask(server: Server, kind: str, request: dict[str, Any], **options: Any) -> Any:
        if "deadly" in str(request.get("statements")):
            kill(server)
        return await asked(server, kind, request, **options)

    monkeypatch.setattr(Server, "ask", ask)
    box.execute(session, "DELETE FROM people WHERE name = 'Ann'")
    answer = box.execute(session, "SELECT 'deadly'")
    assert answer.error == "2013 (HY000): Lost connection to MySQL server during query"
    assert box.execute(session, "SELECT COUNT(*) FROM people").rows == ((4,),)
    assert box.execute(neighbour, "SELECT COUNT(*) FROM people").rows == ((5,),)
    box.close(session)
    box.close(neighbour)


def test_a_request_given_up_midway(box: Handle) -> None:
    """The reply that nobody waits for meets nobody else's request."""

    async def cut(session: Any) -> None:
        task = asyncio.create_task(session.execute(ENDLESS + "SELECT MAX(n) FROM c"))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    session = box.begin()
    box.execute(session, "SELECT 1")
    box.loop.run_until_complete(cut(session))
    assert box.execute(session, "SELECT 2").rows == ((2,),)
    box.close(session)


def test_a_closed_session(box: Handle) -> None:
    session = box.begin()
    box.close(session)
    box.close(session)
    with pytest.raises(DatabaseLost):
        box.execute(session, "SELECT 1")


def test_many_sessions_at_once(box: Handle) -> None:
    async def one(number: int) -> tuple[object, ...]:
        async with await box.databases.begin([PEOPLE]) as session:
            await session.execute(f"INSERT INTO people (name) VALUES ('n{number}')")
            return (await session.execute("SELECT name FROM people LIMIT 5, 1")).rows

    async def everyone() -> list[tuple[object, ...]]:
        return await asyncio.gather(*(one(number) for number in range(40)))

    assert box.loop.run_until_complete(everyone()) == [((f"n{n}",),) for n in range(40)]
