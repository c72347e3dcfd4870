"""Databases in every sandbox this machine can run, behind a synchronous handle."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from cqd_hub.evaluation.databases._interface import Answered, Databases, Session, Table
from cqd_hub.evaluation.databases.sqlite import SqlLimits, open_sqlite
from cqd_hub.evaluation.sandbox import open_sandbox
from tests.evaluation.sandbox.conftest import IMAGE, _why_skipped

PEOPLE = Table(
    "people",
    ("name", "age", "town"),
    (
        ("Ann", "31", "Oslo"),
        ("bob", "9", "Bergen"),
        ("Zoë", "40.5", "oslo"),
        ("Cy", "n/a", ""),
        ("Dee", None, "Bergen"),
    ),
)


class Handle:
    """Databases, and the event loop they live in."""

    def __init__(self, loop: asyncio.AbstractEventLoop, databases: Databases) -> None:
        self.loop, self.databases = loop, databases

    def begin(self, *tables: Table) -> Session:
        return self.loop.run_until_complete(self.databases.begin(tables or (PEOPLE,)))

    def execute(self, session: Session, sql: str) -> Answered:
        return self.loop.run_until_complete(session.execute(sql))

    def digest(self, session: Session, table: str = "people") -> str:
        return self.loop.run_until_complete(session.digest(table))

    def close(self, session: Session) -> None:
        self.loop.run_until_complete(session.close())

    def ask(self, sql: str, *tables: Table) -> Answered:
        """The answer in a database of its own."""
        session = self.begin(*tables)
        try:
            return self.execute(session, sql)
        finally:
            self.close(session)

    def digest_after(self, sql: str, *tables: Table) -> str:
        session = self.begin(*tables)
        try:
            assert self.execute(session, sql).error == ""
            return self.digest(session, (tables or (PEOPLE,))[0].name)
        finally:
            self.close(session)

    def still_right(self) -> None:
        """The next session gets its right answers."""
        assert self.ask("SELECT name FROM people WHERE age > 30").rows == (("Ann",), ("Zoë",))


def handle(
    kind: str,
    *,
    workers: int = 1,
    strict: bool = True,
    limits: SqlLimits = SqlLimits(),  # noqa: B008
) -> Iterator[Handle]:
    if reason := _why_skipped(kind):
        pytest.skip(reason)
    loop = asyncio.new_event_loop()
    sandbox = loop.run_until_complete(open_sandbox(kind, workers=1, image=IMAGE))  # type: ignore[arg-type]
    databases = loop.run_until_complete(
        open_sqlite(sandbox, workers=workers, strict=strict, limits=limits)
    )
    yield Handle(loop, databases)
    loop.run_until_complete(databases.close())
    loop.run_until_complete(sandbox.close())
    loop.close()


def rows(*cells: object) -> Sequence[tuple[object, ...]]:
    """One row of these cells, as `Answered.rows` has it."""
    return (cells,)


@pytest.fixture(scope="package")
def db() -> Iterator[Handle]:
    """In the best sandbox there is."""
    for kind in ("bubblewrap", "landlock"):
        if not _why_skipped(kind):
            yield from handle(kind)
            return
    pytest.skip("no sandbox works here")
