"""The engine: sessions over a few servers, each replayed on another when its server is lost."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from importlib.metadata import version
from typing import Any

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.databases._interface import (
    Answered,
    Cell,
    DatabaseLost,
    Databases,
    Session,
    Table,
)
from cqd_hub.evaluation.sandbox import Sandbox

from ._errors import LONG, LOST, mysql_error
from ._server import Server, ServerGone, SqlLimits
from ._translator import Translator

_LIMITS = SqlLimits()
_MOVES = 8  # of one session for one request


async def open_sqlite(
    sandbox: Sandbox, *, workers: int = 2, strict: bool = True, limits: SqlLimits = _LIMITS
) -> Databases:
    """SQLite that answers as MySQL would: `async with` not needed, but `close` it.

    Args:
        sandbox: Where the servers run; it must stay open.
        workers: Servers, among which sessions are dealt out.
        strict: MySQL's strict mode: a statement that changes something is refused where it takes
            text that is no number for one (error 1292).
        limits: Bounds of each session.

    Raises:
        RunError: A server does not start.
    """
    databases = SqliteDatabases(sandbox, workers, strict, limits)
    await databases.open()
    return databases


class SqliteDatabases(Databases):
    """See `open_sqlite`."""

    kind = "sqlite"

    def __init__(self, sandbox: Sandbox, workers: int, strict: bool, limits: SqlLimits) -> None:
        self._sandbox, self.limits = sandbox, limits
        self._servers: list[Server | None] = [None] * workers
        self._starting = [asyncio.Lock() for _ in range(workers)]
        self.translator = Translator(strict)
        self._mode = "strict" if strict else "lenient"
        self.guarantees = ""

    async def open(self) -> None:
        """Start the first server and the translator, so that what is missing shows at once."""
        await self.translator.translate("SELECT 1", "")
        server = await self.server()
        self.guarantees = (
            f"sqlite: SQLite {server.version} in memory, MySQL translated by sqlglot "
            f"{version('sqlglot')}, {self._mode} mode, text blind to case and accents; one "
            f"database per session, several in one confined process ({self._sandbox.kind}); "
            "instructions, CPU, memory, rows and bytes of a statement bounded"
        )

    async def server(self) -> Server:
        """The server with the fewest sessions.

        Raises:
            RunError: It does not start.
        """
        place = min(
            range(len(self._servers)),
            key=lambda index: found.sessions if (found := self._servers[index]) else 0,
        )
        async with self._starting[place]:
            found = self._servers[place]
            if found is None or found.lost:
                if found is not None:
                    await found.close()
                found = self._servers[place] = await self.fresh()
        return found

    async def fresh(self) -> Server:
        """A server of one's own.

        Raises:
            RunError: It does not start.
        """
        server = Server(self._sandbox, self.limits)
        try:
            await server.open()
        except DatabaseLost as lost:
            await server.close()
            raise RunError(
                f"no database server starts: {lost}", where=f"{self._sandbox.kind} sandbox"
            ) from None
        except BaseException:
            await server.close()
            raise
        return server

    async def begin(self, tables: Sequence[Table]) -> Session:
        session = SqliteSession(self, tuple(tables))
        await session.start()
        return session

    async def close(self) -> None:
        for server in self._servers:
            if server is not None:
                await server.close()
        await self.translator.close()


class SqliteSession(Session):
    """One database on a server; moved to a server of its own, once per statement, when lost."""

    def __init__(self, databases: SqliteDatabases, tables: tuple[Table, ...]) -> None:
        self._databases, self._tables = databases, tables
        self._name = tables[0].name if tables else "agent"
        self._columns = {table.name: list(table.columns) for table in tables}
        self._content = [[table.name, table.columns, table.rows] for table in tables]
        self._done: list[list[dict[str, Any]]] = []  # what changed something, to do it again
        self._server: Server | None = None
        self._own = False
        self._number = -1
        self._transaction = False

    async def start(self) -> None:
        """Make the tables.

        Raises:
            UserError: They cannot be made.
            RunError: No server can be had.
        """
        for table in self._tables:
            _check(table)
        for last in (False, True):
            self._server = await self._databases.server()
            try:
                self._number = await self._server.begin(self._content)
                return
            except ValueError as error:
                self._server = None
                raise UserError(
                    f"the table {self._name!r} cannot be made: {error}", where="database"
                ) from None
            except DatabaseLost as lost:
                self._server = None
                if last:
                    raise RunError(f"no database can be made: {lost}") from None

    async def execute(self, sql: str) -> Answered:
        if len(sql) > self._databases.limits.statement_bytes:
            return Answered(error=LONG)
        sql = sql.encode("utf-8", "replace").decode("utf-8")  # no lone surrogates
        statements = await self._databases.translator.translate(sql, self._name)
        asked = [
            {key: value for key, value in item.items() if key not in ("clauses", "types")}
            for item in statements
        ]
        reply = await self._asked("run", {"statements": asked})
        if reply is None:
            return Answered(error=LOST)
        if any(item.get("changes") for item in statements):
            self._done.append(asked)
        place = reply.get("at", 0)
        if not isinstance(place, int) or not 0 <= place < len(statements):
            raise DatabaseLost("the server spoke nonsense")
        statement = statements[place]
        if "error" in reply:
            clauses = statement.get("clauses", {})
            return Answered(error=mysql_error(str(reply["error"]), self._name, clauses))
        return Answered(rows=_rows(reply.get("rows"), statement.get("types") or []))

    async def digest(self, table: str) -> str:
        request = {"table": table, "columns": self._columns.get(table)}
        reply = await self._asked("digest", request)
        return "" if reply is None else str(reply.get("digest", ""))

    async def _asked(self, kind: str, request: dict[str, Any]) -> dict[str, Any] | None:
        """The reply; None when the request ends even a server of its own."""
        deaths = 0
        for _ in range(_MOVES):
            if self._server is None:
                raise DatabaseLost("the session is closed")
            try:
                return await self._server.ask(kind, {"session": self._number, **request})
            except ServerGone:  # with a neighbour
                await self._moved(alone=False)
            except DatabaseLost:
                deaths += 1
                await self._moved(alone=True)
                if deaths == 2:  # the second time there was nobody else
                    return None
        raise DatabaseLost("one server after the other was lost")

    async def _moved(self, *, alone: bool) -> None:
        """Do again on another server all that was done.

        Raises:
            DatabaseLost: That fails.
        """
        await self._leave()
        databases = self._databases
        self._server = await (databases.fresh() if alone else databases.server())
        self._own = alone
        try:
            self._number = await self._server.begin(self._content)
            for statements in self._done:
                await self._server.ask("run", {"session": self._number, "statements": statements})
        except ValueError as error:
            raise DatabaseLost(str(error)) from None

    async def _leave(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.end(self._number)
            if self._own:
                await server.close()

    async def close(self) -> None:
        await self._leave()


def _check(table: Table) -> None:
    folded = [name.lower() for name in table.columns]
    where = f"table {table.name!r}"
    for name in folded:
        if folded.count(name) > 1:
            raise UserError(f"the column {name!r} appears twice", where=where)
    if not table.columns:
        raise UserError("it has no columns", where=where)
    for place, row in enumerate(table.rows):
        if len(row) != len(table.columns):
            raise UserError(
                f"row {place + 1} has {len(row)} cells for {len(table.columns)} columns",
                where=where,
            )
    names = (table.name, *table.columns)
    if any("\0" in name for name in names) or not table.name:
        raise UserError("a name that no table or column can have", where=where)


# What comes out of a box is data: whatever its form, it becomes cells or text.
_MOMENT = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?: (\d\d):(\d\d):(\d\d)(?:\.(\d{6}))?)?")
_SPAN = re.compile(r"(-?)(\d+):(\d\d):(\d\d)")


def _rows(rows: Any, types: list[list[Any]]) -> tuple[tuple[Cell, ...], ...]:
    if not isinstance(rows, list) or not rows:
        return ()
    rows = [row if isinstance(row, list) else [row] for row in rows]
    kinds = _kinds(types, len(rows[0])) or [("text", 0)] * len(rows[0])
    return tuple(
        tuple(_cell(cell, *kind) for cell, kind in zip(row, kinds, strict=False)) for row in rows
    )


def _kinds(types: list[list[Any]], width: int) -> list[tuple[str, int]] | None:
    """A type for each column, a star standing for as many as are left; None: all as they are."""
    stars = [place for place, item in enumerate(types) if item[2] == "*"]
    known = [(item[0], item[1]) for item in types]
    if stars:
        first, last = stars[0], stars[-1]
        left = width - first - (len(known) - last - 1)
        if left < 0:
            return None
        known = [*known[:first], *[("text", 0)] * left, *known[last + 1 :]]
    if len(known) != width or all(kind == "text" for kind, _ in known):
        return None
    return known


def _plain(cell: Any) -> Cell:
    if isinstance(cell, dict):
        return bytes.fromhex(str(cell.get("b", "")))
    return cell if cell is None or isinstance(cell, (str, int, float)) else str(cell)


def _cell(cell: Any, kind: str, scale: int) -> Cell:
    try:
        return _typed(_plain(cell), kind, scale)
    except (ValueError, ArithmeticError, TypeError):  # no value of Python's: its text
        return str(cell)


def _typed(cell: Cell, kind: str, scale: int) -> Cell:
    if cell is None or kind in ("text", "binary", "null"):
        return cell
    if kind == "decimal" and isinstance(cell, (int, float)) and math.isfinite(cell):
        return _decimal(cell, scale)
    if kind == "double" and isinstance(cell, int):
        return float(cell)
    if kind == "int" and isinstance(cell, float) and cell == int(cell):
        return int(cell)
    if kind in ("date", "datetime") and isinstance(cell, str):
        return _moment(cell, kind)
    if kind == "time" and isinstance(cell, str) and (match := _SPAN.fullmatch(cell)):
        span = timedelta(hours=int(match[2]), minutes=int(match[3]), seconds=int(match[4]))
        return -span if match[1] else span
    return cell


def _decimal(cell: float, scale: int) -> Decimal:
    exact = Decimal(repr(cell))
    if exact.adjusted() > 60:
        return exact
    digits = Decimal(1).scaleb(-scale)
    return exact.quantize(digits, ROUND_HALF_UP) if exact.adjusted() + scale < 27 else exact


def _moment(cell: str, kind: str) -> Cell:
    match = _MOMENT.fullmatch(cell)
    if match is None:
        return cell
    day = [int(word) for word in match.groups()[:3]]
    clock = [int(word or 0) for word in match.groups()[3:]]
    try:
        return date(*day) if kind == "date" else datetime(*day, *clock)  # type: ignore[arg-type]
    except ValueError:
        return cell
