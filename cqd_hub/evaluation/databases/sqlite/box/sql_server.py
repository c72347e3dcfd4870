"""A server of SQLite databases: one per session, all in the memory of one confined process.

It is asked only for statements that the translator wrote. That is not relied upon: whatever could
reach beyond a session's own database is denied by the authorizer, and there is no file, network or
process in reach.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import signal
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from . import sql_dates, sql_groups, sql_strings, sql_text, sql_values
from .sql_values import MySQLError, text

_REFUSED = {
    sqlite3.SQLITE_ATTACH,
    sqlite3.SQLITE_DETACH,
    sqlite3.SQLITE_CREATE_VTABLE,
    sqlite3.SQLITE_DROP_VTABLE,
    sqlite3.SQLITE_CREATE_TRIGGER,
    sqlite3.SQLITE_CREATE_TEMP_TRIGGER,
    sqlite3.SQLITE_CREATE_VIEW,
    sqlite3.SQLITE_CREATE_TEMP_VIEW,
    sqlite3.SQLITE_CREATE_TEMP_TABLE,
    sqlite3.SQLITE_ANALYZE,
    sqlite3.SQLITE_REINDEX,
}
# SQLite's own functions that the translator uses; MySQL's are ours and begin with my_.
_NATIVE = frozenset(
    (
        *("count", "sum", "avg", "min", "max", "coalesce", "ifnull", "nullif", "iif", "typeof"),
        *("char", "instr", "glob", "like", "length", "lower", "substr", "group_concat"),
        *("row_number", "rank", "dense_rank", "percent_rank", "cume_dist", "ntile", "lag", "lead"),
        *("first_value", "last_value", "nth_value"),
        # of ALTER TABLE itself
        *("printf", "quote", "raise", "sqlite_rename_table", "sqlite_rename_column"),
        *("sqlite_rename_test", "sqlite_rename_quotefix", "sqlite_drop_column", "sqlite_fail"),
    )
)
_STEP = 10_000  # SQLite's instructions between two looks at the budget


class _Expired(Exception):
    """The statement's time is up."""


class _Session:
    """One database.

    Args:
        limits: `statement_steps`, `statement_seconds` (CPU), `database_mb`, `memory_mb`, `rows`,
            `result_bytes`.
    """

    def __init__(self, limits: Mapping[str, Any], tables: list[Any]) -> None:
        self.limits = limits
        self.error = ""
        self.steps = 0
        self.inside = False  # SQLite's own work: nothing is refused
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.text_factory = lambda data: data.decode("utf-8", "replace")
        self._define()
        run = self.connection.execute
        run("pragma temp_store = memory")
        run(f"pragma hard_heap_limit = {limits['memory_mb'] << 20}").fetchall()  # of the process
        run(f"pragma max_page_count = {limits['database_mb'] * 256}")
        for name, columns, rows in tables:
            # TEXT as MySQL compares it; SQLite joins on what is declared here.
            wanted = ", ".join(f"{_quoted(column)} TEXT COLLATE mysql" for column in columns)
            run(f"create table {_quoted(name)} ({wanted})")
            if rows:
                marks = ", ".join("?" * len(columns))
                run("begin")
                self.connection.executemany(f"insert into {_quoted(name)} values ({marks})", rows)
                run("commit")
        self._limit()
        self.connection.set_authorizer(self._authorize)
        self.connection.set_progress_handler(self._progress, _STEP)

    def _define(self) -> None:
        define = self.connection.create_function
        for name, function in (*sql_values.PLAIN.items(), *sql_strings.PLAIN.items(), *_dated()):
            define(f"my_{name}", -1, self._guarded(function, nulls=False), deterministic=True)
        for name, function in sql_strings.WITH_NULLS.items():
            define(f"my_{name}", -1, self._guarded(function, nulls=True), deterministic=True)
        define("my_rand", -1, self._guarded(sql_values.randomness(0), nulls=True))
        define("my_unixtime", -1, self._guarded(sql_dates.FUNCTIONS["unix_timestamp"], nulls=True))
        for name, kind in sql_groups.AGGREGATES.items():
            self.connection.create_aggregate(f"my_{name}", -1, kind)
        self.connection.create_collation("mysql", sql_text.compare)

    def _guarded(self, function: Callable[..., Any], nulls: bool) -> Callable[..., Any]:
        """SQLite passes no exception on: keep its text."""

        def call(*values: Any) -> Any:
            try:
                if not nulls and None in values:
                    return None
                found = function(*values)
            except MySQLError as error:
                self.error = str(error)
                raise
            except (TypeError, ValueError, ArithmeticError):
                return None
            if isinstance(found, float) and not math.isfinite(found):
                return None
            return found

        return call

    def _limit(self) -> None:
        if hasattr(self.connection, "setlimit"):  # Python 3.11 and later
            for limit, value in (
                (sqlite3.SQLITE_LIMIT_LENGTH, 4 * sql_values.LONGEST),
                (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 1 << 20),
                (sqlite3.SQLITE_LIMIT_COLUMN, 1000),
                (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 500),
                (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 200),
                (sqlite3.SQLITE_LIMIT_VDBE_OP, 1_000_000),
                (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
                (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 10),
                (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
            ):
                self.connection.setlimit(limit, value)

    def _authorize(self, action: int, one: Any, other: Any, *_: Any) -> int:
        if action in _REFUSED:
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_PRAGMA:
            return sqlite3.SQLITE_OK if one == "table_info" else sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_FUNCTION:
            name = (other or "").lower()
            ours = name.startswith("my_") or name in _NATIVE
            return sqlite3.SQLITE_OK if ours else sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    def _progress(self) -> int:
        self.steps += _STEP
        return int(self.steps > self.limits["statement_steps"])

    def names(self) -> dict[str, str]:
        """Table names, by the folded one."""
        found = self.connection.execute("select name from sqlite_master where type = 'table'")
        return {name.lower(): name for (name,) in found if not name.startswith("sqlite_")}

    def columns(self, table: str) -> list[str]:
        found = self.connection.execute(f"pragma table_info({_quoted(table)})")
        return [row[1] for row in found]

    def run(self, statements: list[dict[str, Any]]) -> dict[str, Any]:
        """Execute one after the other; the rows of the first that has any, or an error."""
        answer: dict[str, Any] | None = None
        for place, statement in enumerate(statements):
            try:
                with self._bounded():
                    if fault := self._fault(statement) or statement.get("fault"):
                        return {"error": fault, "at": place}
                    found = self._effect(statement)
            except _Expired:
                return {"error": "time", "at": place}
            except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
                late = _clock.late or self.steps > self.limits["statement_steps"]
                return {"error": "time" if late else self.error or str(error), "at": place}
            if found is not None and answer is None:
                answer = {"rows": found, "at": place}
        return answer or {"rows": [], "at": 0}

    @contextlib.contextmanager
    def _bounded(self) -> Iterator[None]:
        """One request's budget of instructions and CPU time."""
        self.error, self.steps, _clock.late = "", 0, False
        # Again and again: SQLite swallows what a collation raises.
        signal.setitimer(signal.ITIMER_PROF, self.limits["statement_seconds"], 0.05)
        try:
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except _Expired:  # perhaps before the timer was stopped
            signal.setitimer(signal.ITIMER_PROF, 0)
            raise

    def _effect(self, statement: Mapping[str, Any]) -> list[list[Any]] | None:
        if word := statement.get("transaction"):
            if self.connection.in_transaction:
                self.connection.execute("rollback" if word == "rollback" else "commit")
            if word == "begin":
                self.connection.execute("begin")
            return None
        if statement.get("drop"):
            for name in self.names().values():
                self.connection.execute(f"drop table {_quoted(name)}")
            return None
        return self._rows(statement["sql"]) if statement["sql"] else None

    def _fault(self, statement: Mapping[str, Any]) -> str:
        """What MySQL would refuse and SQLite would not."""
        tables = statement.get("tables", ())
        dropped = statement.get("dropped")
        if dropped and self.names().get(dropped.lower()) != dropped:
            return f"unknown table: {dropped}"
        if not tables:
            return ""
        names = self.names()
        for table in tables:
            if names.get(table.lower()) != table:
                return f"no such table: {table}"
        if needed := statement.get("needed"):
            known = {column.lower() for table in tables for column in self.columns(table)}
            for column in needed:
                if column.lower() not in known:
                    return f"no such column: {column}"
        if (grouped := statement.get("grouped")) is not None:
            for column in self.columns(tables[0]):
                if column.lower() not in grouped:
                    return f"not grouped: {column}"
        return ""

    def _rows(self, sql: str) -> list[list[Any]] | None:
        cursor = self.connection.execute(sql)
        if cursor.description is None:
            return None
        found: list[list[Any]] = []
        left = self.limits["result_bytes"]
        for row in cursor:
            shown = []
            for cell in row:
                if isinstance(cell, str):
                    left -= len(cell)
                elif isinstance(cell, bytes):
                    left -= 2 * len(cell)
                    cell = {"b": cell.hex()}
                elif isinstance(cell, float) and not math.isfinite(cell):
                    cell = None
                left -= 8
                shown.append(cell)
            if left < 0 and found:
                break
            found.append(shown)
            if len(found) >= self.limits["rows"]:
                break
        cursor.close()
        return found

    def digest(self, table: str, columns: list[str] | None) -> str:
        """See `Session.digest`; *columns* None: all."""
        try:
            with self._bounded():
                return self._digest(table, columns)
        except (_Expired, sqlite3.Error, sqlite3.Warning, ValueError):
            return ""

    def _digest(self, table: str, columns: list[str] | None) -> str:
        if self.names().get(table.lower()) != table:
            return ""
        known = self.columns(table)
        places = {name.lower(): place for place, name in enumerate(known)}
        wanted = known if columns is None else columns
        if any(name.lower() not in places for name in wanted):
            return ""
        order = [places[name.lower()] for name in wanted]
        marks = []
        for row in self.connection.execute(f"select * from {_quoted(table)}"):
            joined = ",".join(text(row[place]) for place in order if row[place] is not None)
            marks.append(_md5(joined)[:5])
        if not marks:
            return ""
        return _md5(",".join(sorted(marks))[:1024])

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.connection.close()


def _dated() -> list[tuple[str, Callable[..., Any]]]:
    known = sql_dates.FUNCTIONS.items()
    return [(name, function) for name, function in known if name != "unix_timestamp"]


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _md5(word: str) -> str:
    return hashlib.md5(word.encode("utf-8", "replace"), usedforsecurity=False).hexdigest()


class _Clock:
    late = False


_clock = _Clock()


def _expire(*_: Any) -> None:
    _clock.late = True
    raise _Expired


def serve(read: Callable[[], Any], write: Callable[[Mapping[str, Any]], None]) -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGPROF, _expire)
    sessions: dict[int, _Session] = {}
    while (request := read()) is not None:
        for number in request.get("end", ()):
            if session := sessions.pop(number, None):
                session.close()
        if "do" in request:
            try:
                reply = _answer(sessions, request)
            except MemoryError:
                reply = {"lost": "memory"}
            write(reply)


def _answer(sessions: dict[int, _Session], request: Mapping[str, Any]) -> dict[str, Any]:
    kind, number = request["do"], request["session"]
    if kind == "begin":
        try:
            sessions[number] = _Session(request["limits"], request["tables"])
        except (sqlite3.Error, ValueError, OverflowError) as error:
            return {"error": str(error)}
        return {"version": sqlite3.sqlite_version}
    if number not in sessions:
        return {"lost": "unknown session"}
    if kind == "run":
        return sessions[number].run(request["statements"])
    return {"digest": sessions[number].digest(request["table"], request["columns"])}
