"""A database for one sample, in which an agent may do as it likes."""

from __future__ import annotations

import abc
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import TracebackType
from typing import NamedTuple, Self

# As MySQL's connector gives them: agents are shown these values' Python text.
Cell = (
    str
    | int
    | float
    | Decimal
    | bytes
    | datetime.datetime
    | datetime.date
    | datetime.timedelta
    | None
)


@dataclass(frozen=True)
class Table:
    """One table, every column TEXT, as DBBench makes it; *name* is the database's too."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]


class Answered(NamedTuple):
    """What a statement gave.

    Args:
        rows: Of the first statement that has any; empty for a modification.
        error: The engine's message, MySQL's wording and number where there is one, e.g.
            ``1054 (42S22): Unknown column 'x' in 'field list'``; then there are no rows.
    """

    rows: tuple[tuple[Cell, ...], ...] = ()
    error: str = ""


class DatabaseLost(Exception):
    """The engine died, hung or spoke nonsense.

    Args:
        detail: What is known, printable.
    """


class Session(abc.ABC):
    """One sample's database. Not for concurrent use; `close` it whatever happens."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @abc.abstractmethod
    async def execute(self, sql: str) -> Answered:
        """Run one or more statements in MySQL's dialect, each to its end before the next.

        Raises:
            DatabaseLost: the session is gone; open another and execute again what had been.
        """

    @abc.abstractmethod
    async def digest(self, table: str) -> str:
        """DBBench's hash of a table: md5 of the joined, sorted first five hexadecimal digits of
        each row's md5, over the cells that are not NULL of the columns the table was begun with
        (all, of one made since); empty where the table or one of these columns is no more, or the
        table is too much to be hashed within a statement's bounds.

        Raises:
            DatabaseLost: see `execute`.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Drop the database."""


class Databases(abc.ABC):
    """A database engine, opened once.

    Attributes:
        kind: ``sqlite`` (embedded, MySQL translated) or ``mariadb``; recorded with every score.
        guarantees: One line for the manifest: engine, version, mode, and what is bounded.
    """

    kind: str
    guarantees: str

    @abc.abstractmethod
    async def begin(self, tables: Sequence[Table]) -> Session:
        """A fresh database of these tables.

        Raises:
            UserError: A table cannot be made (a column twice, rows of another length).
            RunError: The engine cannot be had.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """End the engine."""
