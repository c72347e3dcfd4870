"""Sessions on the private server: a database and a user each, rebuilt when the server dies."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cqd_hub.errors import RunError
from cqd_hub.evaluation.databases._interface import (
    Answered,
    DatabaseLost,
    Databases,
    Session,
    Table,
)
from cqd_hub.evaluation.sandbox import printable

from ._connection import LOST, Connection, Exhausted, driver
from ._gate import Gate
from ._server import SQL_MODE, Server
from ._slot import Slot, check, digest, kill, make_tables, make_user

_THREADS = 32
_ADMIN_SECONDS = 30.0
_STATEMENT_BYTES = 16384
_TOO_LONG = "1153 (08S01): Got a packet bigger than 'max_allowed_packet' bytes"
_DENIED = frozenset({1044, 1045})
# MySQL 8's utf8mb4_0900_ai_ci, or what is nearest to it on older servers.
_COLLATIONS = ("utf8mb4_uca1400_nopad_ai_ci", "utf8mb4_unicode_520_nopad_ci")
# The clock and the dice stand still, so that equal statements have equal answers.
_SETTINGS = "SET timestamp = 1700000000, rand_seed1 = 1, rand_seed2 = 1"
_ADMIN_SETTINGS = "SET lock_wait_timeout = 10, group_concat_max_len = 1024"
_USE = re.compile(r"\s*use\s+(`(?:[^`]|``)*`|[^\s`;]+)\s*;?\s*", re.IGNORECASE)
T = TypeVar("T")


async def open_mariadb(
    *, note: Callable[[str], None] = lambda line: None, statement_seconds: float = 10.0
) -> MariaDB:
    """Start a server of our own, with an empty data folder, and wait until it answers.

    Args:
        note: Called with a line for what a person should know.
        statement_seconds: Elapsed time of one statement; several together have half as much again.

    Raises:
        UserError: MariaDB, PyMySQL or bubblewrap is not installed, or the last does not work.
        RunError: The server does not start.
    """
    driver()
    databases = MariaDB(Server(statement_seconds), note)
    try:
        await databases._open()
    except BaseException:
        await databases.close()
        raise
    return databases


class MariaDB(Databases):
    """See `open_mariadb`. MySQL 8's modes and nearest collation."""

    kind = "mariadb"

    def __init__(self, server: Server, note: Callable[[str], None]) -> None:
        self.server, self._note = server, note
        self.gate = Gate()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="mariadb")
        self._starting = asyncio.Lock()
        self._free: list[tuple[int, Slot]] = []
        self._count = 0
        self._collation = "utf8mb4_general_ci"
        self.guarantees = ""

    async def _open(self) -> None:
        await self.ready()
        admin = await self._admin()
        known = await self.threaded(
            admin.run, "SELECT collation_name FROM information_schema.collation_character_set_"
            "applicability WHERE character_set_name = 'utf8mb4'"
        )  # fmt: skip
        admin.cut()
        names = {str(row[0]) for row in known.rows}
        short = {f"utf8mb4_{name}" if name.startswith("uca1400") else name for name in names}
        self._collation = next((name for name in _COLLATIONS if name in short), self._collation)
        self.guarantees = (
            f"MariaDB {self.server.version}, {SQL_MODE}, {self._collation}; a private socket, one "
            "database and one user limited to it per sample, no FILE, no local files; statements "
            f"end after {self.server.statement_seconds:g} s, files at 256 "
            f"MiB, memory of the server at 4 GiB; in bubblewrap without network or host files, its "
            "data on a tmpfs of 1 GiB"
        )

    async def ready(self) -> int:
        """Start the server if it has died; return its epoch.

        Raises:
            RunError: It does not start.
        """
        async with self._starting:
            if not self.server.alive:
                if self.server.epoch:
                    self._note("MariaDB ended and is started again")
                await self.server.start()
            return self.server.epoch

    async def threaded(
        self, function: Callable[..., T], *arguments: object, of: Connection | None = None
    ) -> T:
        """Run what blocks; where this is cancelled, cut the connection *of* it and wait."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._threads, lambda: function(*arguments))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if of is not None:
                of.cut()
            await asyncio.wait([future])
            raise

    async def _admin(self) -> Connection:
        return await self.threaded(
            lambda: Connection(
                self.server.socket,
                "root",
                collation=self._collation,
                settings=_ADMIN_SETTINGS,
                seconds=_ADMIN_SECONDS,
            )
        )

    async def connect(self, slot: Slot) -> Connection:
        """A connection of a slot's user, whose password the one before may have changed."""

        def connect() -> Connection:
            return Connection(
                self.server.socket,
                slot.name,
                collation=self._collation,
                database=slot.name,
                settings=_SETTINGS,
                seconds=self.server.statement_seconds * 1.5,
            )

        with contextlib.suppress(DatabaseLost):
            return await self.threaded(connect)
        await self.threaded(make_user, slot)
        return await self.threaded(connect)

    async def take(self) -> Slot:
        """A slot that nobody uses."""
        while self._free:
            epoch, slot = self._free.pop()
            if epoch == self.server.epoch and slot.admin.usable:
                return slot
        self._count += 1
        slot = Slot(f"session_{self._count:06d}", await self._admin())
        await self.threaded(make_user, slot)
        return slot

    def give_back(self, epoch: int, slot: Slot) -> None:
        self._free.append((epoch, slot))

    async def begin(self, tables: Sequence[Table]) -> Session:
        for table in tables:
            check(table)
        session = MariaSession(self, tables)
        try:
            try:
                async with self.gate.together():
                    await session.rebuild()
            except DatabaseLost:
                async with self.gate.alone():
                    await self.server.stop()
                    await session.rebuild()
        except DatabaseLost as lost:
            await session.close()
            raise RunError(f"MariaDB was lost twice: {printable(str(lost))}") from lost
        except BaseException:
            await session.close()
            raise
        return session

    async def close(self) -> None:
        await self.server.stop()
        for _, slot in self._free:
            slot.admin.cut()
        self._threads.shutdown()


class MariaSession(Session):
    """One database. When the server dies, it is made again and its statements are repeated."""

    def __init__(self, databases: MariaDB, tables: Sequence[Table]) -> None:
        self._databases, self._tables = databases, tuple(tables)
        self._slot: Slot | None = None
        self._connection: Connection | None = None
        self._epoch = 0
        self._done: list[str] = []

    async def rebuild(self) -> None:
        """Make the database and repeat what was executed in it.

        Raises:
            UserError: A table cannot be made.
            RunError: The server cannot be started.
            DatabaseLost: It died again.
        """
        databases = self._databases
        self._drop_connection()
        if self._slot is not None:
            self._slot.admin.cut()
            self._slot = None
        self._epoch = await databases.ready()
        self._slot = slot = await databases.take()
        await databases.threaded(make_tables, slot, self._tables, databases._collation)
        for sql in self._done:
            await self._run(sql)

    async def execute(self, sql: str) -> Answered:
        if len(sql.encode(errors="replace")) > _STATEMENT_BYTES:
            return Answered(error=_TOO_LONG)
        if (used := _USE.fullmatch(sql)) and _same_name(used[1], self._name):
            return Answered()
        gate = self._databases.gate
        with contextlib.suppress(DatabaseLost):
            async with gate.together():
                if self._stale:
                    await self.rebuild()
                answered = await self._run(sql)
                self._done.append(sql)
                return answered
        # Another's statement may have ended the server: alone, it is this one or none.
        async with gate.alone():
            await self._databases.server.stop()
            await self.rebuild()
            try:
                answered = await self._run(sql)
            except DatabaseLost as lost:
                await self._databases.server.stop()
                return lost.answered if isinstance(lost, Exhausted) else Answered(error=LOST)
            self._done.append(sql)
            return answered

    @property
    def _stale(self) -> bool:
        server = self._databases.server
        return self._slot is None or not server.alive or self._epoch != server.epoch

    @property
    def _name(self) -> str:
        return self._tables[0].name if self._tables else ""

    async def _run(self, sql: str) -> Answered:
        assert self._slot is not None
        if self._connection is None or not self._connection.usable:
            self._connection = await self._databases.connect(self._slot)
        connection = self._connection
        answered = await self._databases.threaded(connection.run, sql, of=connection)
        if not self._connection.usable or answered.error.startswith("3024"):
            await self._end_connection()
        return self._renamed(answered)

    def _renamed(self, answered: Answered) -> Answered:
        """The answer with our name for the database and the user replaced by the table's."""
        assert self._slot is not None
        ours, theirs = self._slot.name, self._name
        if ours in answered.error:
            return Answered(error=answered.error.replace(ours, theirs))
        rows = tuple(
            tuple(cell.replace(ours, theirs) if isinstance(cell, str) else cell for cell in row)
            for row in answered.rows
        )
        return Answered(rows, answered.error)

    async def digest(self, table: str) -> str:
        gate = self._databases.gate
        with contextlib.suppress(DatabaseLost):
            async with gate.together():
                return await self._digest(table)
        async with gate.alone():
            await self._databases.server.stop()
            return await self._digest(table)

    async def _digest(self, table: str) -> str:
        if self._stale:
            await self.rebuild()
        assert self._slot is not None
        # Ours, not the agent's: locks, temporary tables and settings end with its connection.
        await self._end_connection()
        columns = next((each.columns for each in self._tables if each.name == table), None)
        threaded = self._databases.threaded
        return await threaded(digest, self._slot, table, columns)

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.cut()
            self._connection = None

    async def _end_connection(self) -> None:
        """Close the connection, and wait until the server has let go of what it held.

        Raises:
            DatabaseLost: It does not, or is gone.
        """
        if self._connection is None or self._slot is None:
            return
        number = self._connection.id
        self._drop_connection()
        await self._databases.threaded(kill, self._slot.admin, number)

    async def close(self) -> None:
        slot = self._slot
        if slot is None:
            return
        if not self._stale:
            with contextlib.suppress(DatabaseLost):
                await self._end_connection()
                drop = f"DROP DATABASE IF EXISTS {slot.name}"
                if not (await self._databases.threaded(slot.admin.run, drop)).error:
                    self._databases.give_back(self._epoch, slot)
                    self._slot = None
                    return
        slot.admin.cut()
        self._slot = None


def _same_name(text: str, name: str) -> bool:
    return (text[1:-1].replace("``", "`") if text.startswith("`") else text) == name
