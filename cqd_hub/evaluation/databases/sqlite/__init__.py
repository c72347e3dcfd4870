"""SQLite that answers as MySQL would, in a box.

async with await open_sandbox() as sandbox:
    databases = await open_sqlite(sandbox)
    async with await databases.begin([Table("t", ("a",), (("1",),))]) as session:
        await session.execute("SELECT a + 1 FROM t")  # Answered(rows=((2.0,),))
"""

from __future__ import annotations

from ._databases import open_sqlite
from ._server import SqlLimits

__all__ = ["SqlLimits", "open_sqlite"]
