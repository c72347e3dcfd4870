"""SQLite against MariaDB in MySQL 8's mode: what an agent is shown, statement by statement."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cqd_hub.errors import UserError
from cqd_hub.evaluation.databases._interface import Databases, Session, Table
from cqd_hub.evaluation.databases.mariadb import open_mariadb
from cqd_hub.evaluation.databases.sqlite import open_sqlite
from cqd_hub.evaluation.sandbox import open_sandbox

from .statements import CHANGES, statements, table

SHARED = (
    Path(__file__).parents[4].parent / "shared" / "data" / "agentbench" / "dbbench" / "dev.jsonl"
)
FLOOR = 0.998  # of 10,395 statements 10,393 were equal when this was written


def shared() -> Iterator[Table]:
    """DBBench's tables, where they lie beside the checkout."""
    if not SHARED.exists():
        return
    for line in SHARED.read_text(encoding="utf-8").splitlines():
        content = json.loads(line)["table"]
        names = tuple(column["name"] for column in content["table_info"]["columns"])
        cells = content["table_info"]["rows"]
        rows = tuple(tuple(None if cell is None else str(cell) for cell in row) for row in cells)
        if "" not in names:
            yield Table(content["table_name"], names, rows)


async def shown(session: Session, sql: str, name: str) -> str:
    answer = await session.execute(sql)
    found = answer.error.split(" ")[0] if answer.error else str(answer.rows)
    return found + await session.digest(name) if sql.startswith(CHANGES) else found


async def differing(tables: list[Table]) -> tuple[int, list[str]]:
    async with await open_sandbox() as sandbox:
        engines: list[Databases] = [await open_sqlite(sandbox, workers=1), await open_mariadb()]
        count, found = 0, []
        for number, about in enumerate(tables):
            sessions = [await engine.begin([about]) for engine in engines]
            for kind, sql in statements(about, number):
                answers = [await shown(session, sql, about.name) for session in sessions]
                count += 1
                if answers[0] != answers[1]:
                    found.append(f"{kind}: {sql}: {answers[0][:500]} for {answers[1][:500]}")
                if sql.startswith(CHANGES):
                    for session in sessions:
                        await session.close()
                    sessions = [await engine.begin([about]) for engine in engines]
            for session in sessions:
                await session.close()
        for engine in engines:
            await engine.close()
    return count, found


@pytest.mark.slow
def test_as_mariadb() -> None:
    tables = [*(table(seed) for seed in range(40)), *shared()]
    try:
        count, found = asyncio.run(differing(tables))
    except UserError as error:
        pytest.skip(str(error))
    kinds = Counter(line.partition(":")[0] for line in found)
    print(f"{count - len(found)} of {count} equal; {dict(kinds)}")
    assert count >= 100 * len(tables)
    assert len(found) <= (1 - FLOOR) * count, "\n".join(found[:20])
