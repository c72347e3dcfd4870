"""One connection of one user, whose answers are bounded in bytes and time."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

from cqd_hub.errors import UserError
from cqd_hub.evaluation.databases._interface import Answered, Cell, DatabaseLost

_REPLY_BYTES = 4 << 20
_KEPT_CELLS = 20_000
_LEGIBLE = "SET character_set_results = utf8mb4"
_REMEDY = "install the driver: `pip install 'cqd-hub[mariadb]'`"
TIMED_OUT = (
    "3024 (HY000): Query execution was interrupted, maximum statement execution time exceeded"
)
LOST = "2013 (HY000): Lost connection to MySQL server during query"
# The server's way to say that memory or disk ran out, perhaps because of a neighbour.
_EXHAUSTED = frozenset({3, 5, 20, 1005, 1021, 1030, 1037, 1041, 1114, 1296})
_INTERRUPTED = frozenset({1317, 1969})


class Exhausted(DatabaseLost):
    """The server has no memory or disk left.

    Args:
        answered: What the statement would see if that were its own doing.
    """

    def __init__(self, answered: Answered) -> None:
        self.answered = answered
        super().__init__(answered.error)


class _Wire(socket.socket):
    """A socket that gives up when a reply is too long or too late."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._seconds = seconds
        self.allow()
        self.connect(path)

    def allow(self) -> None:
        """Begin a request."""
        self.overrun = ""
        self._left = _REPLY_BYTES
        self._deadline = time.monotonic() + self._seconds
        self.settimeout(self._seconds)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        seconds = self._deadline - time.monotonic()
        if seconds > 0:
            self.settimeout(seconds)
            try:
                count = super().recv_into(buffer, nbytes, flags)
            except TimeoutError:
                seconds = 0.0
            else:
                self._left -= count
                if self._left >= 0:
                    return count
        self.overrun = "time" if seconds <= 0 else "bytes"
        raise TimeoutError(self.overrun)


def driver() -> Any:
    """PyMySQL.

    Raises:
        UserError: It is not installed.
    """
    try:
        import pymysql
    except ImportError as error:
        raise UserError("PyMySQL is not installed", remedy=_REMEDY) from error
    return pymysql


class Connection:
    """A connection; every method blocks.

    Args:
        path: The server's socket.
        user: Without a password: who can open the socket is let in.
        database: The one in use.
        settings: Session variables, set first.
        seconds: Elapsed time of one `run`.

    Raises:
        DatabaseLost: There is no server.
    """

    def __init__(
        self,
        path: str,
        user: str,
        *,
        collation: str,
        database: str | None = None,
        settings: str,
        seconds: float,
    ) -> None:
        mysql = driver()
        self._error, self._cursor_class = mysql.err.MySQLError, mysql.cursors.SSCursor
        flags = mysql.constants.CLIENT.MULTI_STATEMENTS
        self._mysql = mysql.connections.Connection(
            user=user,
            database=database,
            charset="utf8mb4",
            collation=collation,
            client_flag=flags,
            init_command=settings,
            autocommit=True,
            local_infile=False,
            ssl_disabled=True,
            defer_connect=True,
        )
        try:
            self._wire = _Wire(path, seconds)
            self._mysql.connect(self._wire)
        except (OSError, self._error) as error:
            raise DatabaseLost(str(error)) from error
        self.id: int = self._mysql.thread_id()

    def run(self, sql: str, values: Sequence[str | None] | None = None) -> Answered:
        """Execute each statement of *sql* to its end; what is left open is committed, or rolled
        back after an error.

        Raises:
            DatabaseLost: The server is gone, or this connection is.
            Exhausted: The server has no memory or disk left.
        """
        if not self.usable:
            raise DatabaseLost("the connection is closed")
        self._wire.allow()
        rows: list[tuple[Cell, ...]] = []
        cursor = self._mysql.cursor(self._cursor_class)
        try:
            cursor.execute(_LEGIBLE)  # whatever the last request made of it
            cursor.execute(sql, values)
            while True:
                self._take(cursor, rows)
                if not cursor.nextset():
                    break
            self._mysql.commit()
        except self._error as error:
            _forget(cursor)
            if self._wire.overrun == "bytes":
                return Answered(tuple(rows))
            if self._wire.overrun:
                return Answered(error=TIMED_OUT)
            return self._failed(error)
        except (ValueError, ArithmeticError, LookupError, TypeError, struct.error) as error:
            # A cell that Python has no value for.
            _forget(cursor)
            self.cut()
            return Answered(error=f"2000 (HY000): {type(error).__name__}")
        except BaseException:
            _forget(cursor)
            self.cut()
            raise
        return Answered(tuple(rows))

    @property
    def usable(self) -> bool:
        return bool(self._mysql.open)

    def _take(self, cursor: Any, rows: list[tuple[Cell, ...]]) -> None:
        """Read a result to its end, and keep it where it is the first with rows."""
        if cursor.description is None:
            return
        keep, cells = not rows, 0
        while (row := cursor.fetchone()) is not None:
            if keep and cells < _KEPT_CELLS:
                rows.append(row)
                cells += len(row)

    def _failed(self, error: Any) -> Answered:
        number, text = error.args[0] if error.args else 0, str(error.args[-1])
        if not self.usable or number in (2006, 2013):
            self.cut()
            raise DatabaseLost(text)
        answered = Answered(error=_worded(number, getattr(error, "sqlstate", None), text))
        if number in _EXHAUSTED:
            raise Exhausted(answered)
        with contextlib.suppress(self._error):
            self._mysql.rollback()
        return answered

    def cut(self) -> None:
        """Close the socket at once, from any thread."""
        with contextlib.suppress(OSError):
            self._wire.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(self._error, OSError):
            self._mysql._force_close()


def _forget(cursor: Any) -> None:
    """Keep an abandoned result from reading on when it is collected."""
    for result in (cursor._result, getattr(cursor.connection, "_result", None)):
        if result is not None:
            result.unbuffered_active = False


def _worded(number: int, state: str | None, text: str) -> str:
    """An error as MySQL's connector prints it."""
    if number in _INTERRUPTED:
        return TIMED_OUT
    text = re.sub("your MariaDB server version", "your MySQL server version", text)
    return f"{number} ({state or 'HY000'}): {text}"
