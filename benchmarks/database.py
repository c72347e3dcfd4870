"""What a database sample costs in the box, against SQLite in this very process.

    python benchmarks/database.py [--rounds 100] [--workers 1]

A sample: make a table of 105 rows, two queries and an UPDATE, the table's digest, drop it. Both run
the same translated statements with the same functions and collation; the bare one without a box,
limits or authorizer. Rounds take each contestant in turn; printed are medians in milliseconds and
the median of each round's ratio to the bare one. "new" translates statements never seen before.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import sqlite3
import statistics
import time
from collections.abc import Awaitable, Callable

from cqd_hub.errors import UserError
from cqd_hub.evaluation.databases._interface import Databases, Table
from cqd_hub.evaluation.databases.sqlite import open_sqlite
from cqd_hub.evaluation.databases.sqlite.box import sql_text, sql_values
from cqd_hub.evaluation.databases.sqlite.translate import translate
from cqd_hub.evaluation.sandbox import open_sandbox

DRAW = random.Random(0)
TOWNS = ("Oslo", "Bergen", "Tromsø", "São Paulo", "Zürich")
ROWS = tuple(
    (f"person {number}", str(DRAW.randint(1, 90)), DRAW.choice(TOWNS), f"{DRAW.random():.3f}")
    for number in range(105)
)
PEOPLE = Table("people", ("name", "age", "town", "score"), ROWS)
STATEMENTS = (
    "SELECT town, COUNT(*) AS n FROM people WHERE age > 30 GROUP BY town ORDER BY n DESC, town",
    "SELECT name FROM people WHERE town = 'oslo' AND score < 0.5 ORDER BY score + 0 LIMIT 5",
    "UPDATE people SET town = 'x' WHERE name = 'person 7'",
)


def bare(translated: list[str]) -> str:
    """The sample in this process; its digest."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for name in ("num", "snum", "str"):
        function = sql_values.PLAIN[name]
        connection.create_function(f"my_{name}", -1, function, deterministic=True)
    connection.create_collation("mysql", sql_text.compare)
    columns = ", ".join(f"`{name}` TEXT COLLATE mysql" for name in PEOPLE.columns)
    connection.execute(f"create table people ({columns})")
    connection.execute("begin")
    connection.executemany("insert into people values (?, ?, ?, ?)", PEOPLE.rows)
    connection.execute("commit")
    for sql in translated:
        connection.execute(sql).fetchall()
    marks = [
        hashlib.md5(",".join(cell for cell in row if cell is not None).encode()).hexdigest()[:5]
        for row in connection.execute("select * from people")
    ]
    connection.close()
    return hashlib.md5(",".join(sorted(marks)).encode()).hexdigest()


async def boxed(databases: Databases, statements: tuple[str, ...]) -> str:
    async with await databases.begin([PEOPLE]) as session:
        for sql in statements:
            answer = await session.execute(sql)
            if answer.error:
                raise SystemExit(answer.error)
        return await session.digest("people")


async def main(rounds: int, workers: int) -> None:
    translated = [translate(sql, "people", True)[0]["sql"] for sql in STATEMENTS]

    async def in_process() -> str:
        return bare(translated)

    count = iter(range(1 << 30))

    def fresh() -> tuple[str, ...]:
        number = next(count)
        return tuple(f"{sql} -- {number}" for sql in STATEMENTS)

    contestants: dict[str, Callable[[], Awaitable[str]]] = {"bare": in_process}
    opened = []
    for kind in ("bubblewrap", "landlock", "docker"):
        try:
            sandbox = await open_sandbox(kind)  # type: ignore[arg-type]
        except UserError as error:
            print(f"left out: {error}")
            continue
        databases = await open_sqlite(sandbox, workers=workers)
        opened.append((sandbox, databases))
        contestants[f"{kind}, known"] = lambda d=databases: boxed(d, STATEMENTS)
        contestants[f"{kind}, new"] = lambda d=databases: boxed(d, fresh())
    wanted = await in_process()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 3):
        for name, run in contestants.items():
            began = time.perf_counter()
            if await run() != wanted:
                raise SystemExit(f"{name}: another digest")
            if turn >= 3:
                times[name].append(1000 * (time.perf_counter() - began))
    for sandbox, databases in opened:
        await databases.close()
        await sandbox.close()
    print(f"{'':22}{'ms':>8}{'to bare':>9}")
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, times["bare"], strict=True))
        print(f"{name:22}{statistics.median(found):8.2f}{ratio:9.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    asyncio.run(main(options.rounds, options.workers))
