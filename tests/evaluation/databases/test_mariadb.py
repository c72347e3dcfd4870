"""A real MariaDB server, and agents that are not nice to it."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cqd_hub.errors import UserError
from cqd_hub.evaluation.databases import Answered, DatabaseLost, Table
from cqd_hub.evaluation.databases.mariadb import MariaDB, _server, _slot, open_mariadb

if _server._find("mariadbd", "mysqld") is None:
    pytest.skip("MariaDB is not installed", allow_module_level=True)

T = TypeVar("T")
FLEET = Table(
    "Fleet of `2024`, 100%",
    ("Ship", "Tons (t)", "na`me"),
    (("Argo", "1200", "é"), ("Beagle", "90", None), ("Cutty", "921", "back\\slash 'quoted'")),
)
NAME = "`Fleet of ``2024``, 100%`"


class Bench:
    """A server, and the event loop it lives in."""

    def __init__(self, loop: asyncio.AbstractEventLoop, databases: MariaDB) -> None:
        self.loop, self.databases = loop, databases

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def play(self, *statements: str, table: Table = FLEET) -> list[Answered]:
        """The answers of one session."""

        async def play() -> list[Answered]:
            async with await self.databases.begin([table]) as session:
                return [await session.execute(sql) for sql in statements]

        return self.run(play())

    def still_right(self) -> None:
        """The next session gets its right verdict."""

        async def play() -> None:
            async with await self.databases.begin([FLEET]) as session:
                assert await session.digest(FLEET.name) == digest(FLEET.rows)
                changed = await session.execute(f"UPDATE {NAME} SET Ship = 'X' WHERE `Tons (t)`=90")
                assert changed == Answered()
                rows = [("X", *row[1:]) if row[1] == "90" else row for row in FLEET.rows]
                assert await session.digest(FLEET.name) == digest(rows)

        self.run(play())


def digest(rows: Any) -> str:
    hashes = (
        hashlib.md5(",".join(c for c in row if c is not None).encode()).hexdigest() for row in rows
    )
    return hashlib.md5(",".join(sorted(each[:5] for each in hashes)).encode()).hexdigest()


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    loop = asyncio.new_event_loop()
    databases = loop.run_until_complete(open_mariadb(statement_seconds=2))
    yield Bench(loop, databases)
    loop.run_until_complete(databases.close())
    loop.close()


def test_any_name_and_any_cell(bench: Bench) -> None:
    (answer,) = bench.play(f"SELECT * FROM {NAME}")
    assert answer.rows == FLEET.rows
    bench.still_right()


def test_errors_are_worded_as_by_the_connector(bench: Bench) -> None:
    missing, column, syntax, empty, strict = bench.play(
        "SELECT * FROM nope",
        f"SELECT nope FROM {NAME}",
        "SELEC 1",
        "",
        f"UPDATE {NAME} SET Ship = 'x' WHERE Ship > 5",
    )
    assert missing.error == f"1146 (42S02): Table '{FLEET.name}.nope' doesn't exist"
    assert column.error.startswith("1054 (42S22): Unknown column 'nope' in ")
    assert syntax.error.startswith("1064 (42000): You have an error in your SQL syntax;")
    assert "your MySQL server version" in syntax.error
    assert empty.error.startswith("1065 (42000): Query was empty")
    assert strict.error.startswith("1292 (22007): Truncated incorrect ")


def test_statements_run_one_by_one_and_the_first_rows_count(bench: Bench) -> None:
    answers = bench.play(
        f"UPDATE {NAME} SET Ship = 'A'; SELECT DISTINCT Ship FROM {NAME}; SELECT 2",
        f"START TRANSACTION; UPDATE {NAME} SET Ship = 'B'; SELECT nope",
        f"SELECT DISTINCT Ship FROM {NAME}",
        f"USE {NAME}",
    )
    assert [answer.rows for answer in answers] == [(("A",),), (), (("A",),), ()]
    assert answers[1].error.startswith("1054")
    assert not answers[3].error


def test_equal_statements_have_equal_answers(bench: Bench) -> None:
    sql = "SELECT DATABASE(), USER(), NOW(), RAND(), CURDATE()", "SHOW DATABASES", "SHOW GRANTS"
    assert bench.play(*sql)[:2] == bench.play("SELECT 1", *sql)[1:3]
    assert bench.play("SELECT DATABASE()")[0].rows == ((FLEET.name,),)


def test_tables_that_cannot_be_made(bench: Bench) -> None:
    for table, words in (
        (Table("t", ("a", "A"), ()), "1060 .* Duplicate column name"),
        (Table("t", ("",), ()), "1166 .* Incorrect column name"),
        (Table("t", ("a", "b"), (("1", "2"), ("3",))), "row 2 of table 't' has 1 cells"),
    ):
        with pytest.raises(UserError, match=words):
            bench.play(table=table)
    bench.still_right()


def test_a_large_table_arrives_whole(bench: Bench) -> None:
    rows = tuple((str(number), "x" * 3000) for number in range(1500))
    (answer,) = bench.play(
        "SELECT COUNT(*), SUM(LENGTH(b)) FROM t", table=Table("t", ("a", "b"), rows)
    )
    assert answer.rows[0][0] == 1500
    assert int(str(answer.rows[0][1])) == 4_500_000


HOSTILE = [
    ("DROP DATABASE mysql", "1044"),
    ("DROP USER root@localhost", "1227"),
    ("SELECT * FROM mysql.global_priv", "1142"),
    ("SELECT 1 INTO OUTFILE '/data/x'", "1227"),
    (f"LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE {NAME}", "4166"),
    (f"LOAD DATA INFILE '/etc/passwd' INTO TABLE {NAME}", "1045"),
    ("GRANT ALL ON *.* TO CURRENT_USER()", "1045"),
    ("CREATE USER me", "1227"),
    ("SET GLOBAL max_connections = 1", "1227"),
    ("SHUTDOWN", "1227"),
    ("KILL 1", "109"),
    ("INSTALL SONAME 'ha_connect'", "1142"),
    ("CREATE DATABASE other", "1044"),
    ("USE mysql", "1044"),
    ("FLUSH TABLES WITH READ LOCK", "1227"),
    ("DO SLEEP(1000)", ""),
    ("SELECT SLEEP(1000)", "3024"),
    ("SET max_statement_time = 0; SELECT SLEEP(1000)", "3024"),
    ("SELECT 1;" * 5000, "1153"),
]


@pytest.mark.parametrize(("sql", "number"), HOSTILE, ids=[sql[:40] for sql, _ in HOSTILE])
def test_what_an_agent_may_not(bench: Bench, sql: str, number: str) -> None:
    answer, after = bench.play(sql, f"SELECT COUNT(*) FROM {NAME}")
    assert answer.error.startswith(number)
    assert not answer.rows
    assert after.rows == ((3,),)
    bench.still_right()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT LOAD_FILE('/etc/passwd')",
        "SET PASSWORD = PASSWORD('mine')",
        f"LOCK TABLES {NAME} WRITE",
        f"START TRANSACTION; UPDATE {NAME} SET Ship = 'locked'; SELECT nope",
        "SET sql_mode = '', autocommit = 0, group_concat_max_len = 4, NAMES latin1",
        f"CREATE TEMPORARY TABLE {NAME} (a INT)",
        "SELECT GET_LOCK('all', 1000)",
        "XA START 'x'",
    ],
)
def test_what_an_agent_does_stays_with_it(bench: Bench, sql: str) -> None:
    async def play() -> None:
        async with await bench.databases.begin([FLEET]) as session:
            answer = await session.execute(sql)
            assert answer.rows in ((), ((None,),), ((1,),))
            assert await session.digest(FLEET.name) == digest(FLEET.rows)
            await session.execute(f"UPDATE {NAME} SET Ship = 'mine'")

    bench.run(play())
    bench.still_right()


def test_no_agent_sees_another(bench: Bench) -> None:
    async def play() -> None:
        async with (
            await bench.databases.begin([FLEET]) as mine,
            await bench.databases.begin([FLEET]) as other,
        ):
            await other.execute(f"INSERT INTO {NAME} VALUES ('secret', '1', '2')")
            ours = other._slot.name  # type: ignore[attr-defined]
            for sql in (
                f"SELECT * FROM {ours}.{NAME}",
                f"DROP TABLE {ours}.{NAME}",
                f"USE {ours}",
                f"GRANT SELECT ON {ours}.* TO CURRENT_USER()",
            ):
                assert (await mine.execute(sql)).error[:4] in ("1142", "1044", "1045")
            seen = await mine.execute("SELECT COUNT(*) FROM information_schema.processlist")
            assert seen.rows == ((1,),)
            number = other._connection.id  # type: ignore[attr-defined]
            assert (await mine.execute(f"KILL {number}")).error[:4] in ("1094", "1095")
            assert (await other.execute(f"SELECT COUNT(*) FROM {NAME}")).rows == ((4,),)

    bench.run(play())


def test_a_dropped_table_has_no_digest(bench: Bench) -> None:
    async def play() -> tuple[str, str]:
        async with await bench.databases.begin([FLEET]) as session:
            await session.execute(
                "CREATE TABLE made (a INT, b TEXT); INSERT INTO made VALUES (1, 'x')"
            )
            assert await session.digest("made") == digest([("1", "x")])
            await session.execute(f"DROP TABLE {NAME}")
            return await session.digest(FLEET.name), await session.digest("other")

    assert bench.run(play()) == ("", "")
    bench.still_right()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT seq FROM seq_1_to_100000000",
        "SELECT " + ",".join(["REPEAT('a', 1000000)"] * 400),
        f"SELECT a.* FROM {NAME} a" + "".join(f", {NAME} b{i}" for i in range(12)),
    ],
)
def test_endless_answers_are_cut(bench: Bench, sql: str) -> None:
    answer, after = bench.play(sql, "SELECT 1")
    assert sum(len(row) for row in answer.rows) <= 20_010
    assert after.rows == ((1,),)
    bench.still_right()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_cells_in_another_character_set(bench: Bench) -> None:
    for name in ("utf16", "ucs2", "NULL"):
        answer, after = bench.play(
            f"SET character_set_results={name}; SELECT 1.5, _latin1 x'e9'", "SELECT 1.5"
        )
        assert answer.rows or answer.error.startswith("2000 (HY000): ")
        assert after.rows == ((Decimal("1.5"),),)
    _, after = bench.play("SET character_set_results=utf16", "SELECT 1.5, 'é'")
    assert after.rows == ((Decimal("1.5"), "é"),)
    gc.collect()
    bench.still_right()


def test_a_session_outlives_the_server(bench: Bench) -> None:
    async def play() -> None:
        async with (
            await bench.databases.begin([FLEET]) as first,
            await bench.databases.begin([FLEET]) as second,
        ):
            await first.execute(f"UPDATE {NAME} SET Ship = 'first'")
            await second.execute(f"UPDATE {NAME} SET Ship = 'second'")
            began = bench.databases.server.epoch
            asked = asyncio.create_task(first.execute("SELECT SLEEP(1)"))
            while not await _sleeping(bench.databases):
                await asyncio.sleep(0.01)
            bench.databases.server.kill()
            assert (await asked).rows == ((0,),)
            assert bench.databases.server.epoch > began
            for session, word in ((first, "first"), (second, "second")):
                rows = await session.execute(f"SELECT DISTINCT Ship FROM {NAME}")
                assert rows.rows == ((word,),)
                changed = [(word, *row[1:]) for row in FLEET.rows]
                assert await session.digest(FLEET.name) == digest(changed)

    bench.run(play())
    bench.still_right()


async def _sleeping(databases: MariaDB) -> bool:
    admin = await databases._admin()
    found = await databases.threaded(
        admin.run, "SELECT 1 FROM information_schema.processlist WHERE info = 'SELECT SLEEP(1)'"
    )
    admin.cut()
    return bool(found.rows)


def test_a_full_disk_is_the_fault_of_who_filled_it(bench: Bench) -> None:
    fill = "; ".join(
        f"CREATE TABLE big{n} ENGINE=MyISAM AS SELECT REPEAT('a', 1000000) x FROM seq_1_to_220"
        for n in range(6)
    )

    async def play() -> None:
        async with (
            await bench.databases.begin([FLEET]) as hog,
            await bench.databases.begin([FLEET]) as neighbour,
        ):
            await neighbour.execute(f"UPDATE {NAME} SET Ship = 'n'")
            answer = await hog.execute(fill)
            assert answer.error
            changed = [("n", *row[1:]) for row in FLEET.rows]
            assert await neighbour.digest(FLEET.name) == digest(changed)
            assert (await hog.execute(f"SELECT COUNT(*) FROM {NAME}")).rows == ((3,),)

    bench.run(play())
    bench.still_right()


def test_a_cancelled_statement_leaves_nothing(bench: Bench) -> None:
    async def play() -> None:
        session = await bench.databases.begin([FLEET])
        asked = asyncio.create_task(session.execute("SELECT SLEEP(1)"))
        while not await _sleeping(bench.databases):
            await asyncio.sleep(0.01)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await session.close()
        assert not await _sleeping(bench.databases)

    bench.run(play())
    bench.still_right()


def test_the_server_sees_nothing_of_the_host(bench: Bench) -> None:
    server = bench.databases.server
    assert "bubblewrap" in bench.databases.guarantees
    process = server._process
    assert process is not None
    assert Path(f"/proc/{process.pid}/environ").read_bytes() == b""
    if os.geteuid() == 0:
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "\nUid:\t0" not in status


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that the server's user may look into."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_it_is_refused_without_a_box(monkeypatch: pytest.MonkeyPatch, open_folder: Path) -> None:
    broken = open_folder / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: no namespaces' >&2\nexit 1\n")
    broken.chmod(0o755)
    which = shutil.which
    for found, words in ((None, "apt install bubblewrap"), (str(broken), "no namespaces")):
        monkeypatch.setattr(
            _server.shutil,
            "which",
            lambda name, found=found, **more: found if name == "bwrap" else which(name, **more),
        )
        with pytest.raises(UserError, match=words):
            asyncio.run(open_mariadb())


def test_folders_of_killed_runs_are_swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_server.tempfile, "gettempdir", lambda: str(tmp_path))
    dead = 1 << 30  # no process has such a number
    names = (f"cqd-hub-db-{dead}-old", f"cqd-hub-db-{dead}-new", f"cqd-hub-db-{os.getpid()}-old")
    for name in names:
        (tmp_path / name / "inner").mkdir(parents=True)
        if name.endswith("old"):
            os.utime(tmp_path / name, (0, 0))
    _server.sweep()
    assert {path.name for path in tmp_path.iterdir()} == set(names[1:])


def test_what_does_not_end_when_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn:
        def run(self, sql: str) -> Answered:
            return Answered(((1,),))

    monkeypatch.setattr(_slot, "_KILL_SECONDS", 0.01)
    with pytest.raises(DatabaseLost):
        _slot.kill(Stubborn(), 1)  # type: ignore[arg-type]


def test_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_server, "_find", lambda *names: None)
    with pytest.raises(UserError, match="apt install mariadb-server-core"):
        asyncio.run(open_mariadb())
