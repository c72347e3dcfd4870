"""How a reply in AgentBench's text dialect is read."""

from __future__ import annotations

import re
from typing import NamedTuple

_ACTION = re.compile(r"Action: (.*?)\n")
_SQL = re.compile(r"```sql\n([\s\S]*?)\n```")
_FINAL = re.compile(r"\nFinal Answer:(.*)")


class Reading(NamedTuple):
    """What a reply says.

    Args:
        operates: Its first action is the word Operation, and nothing else.
        sql: The first block of SQL, on one line; None without one.
        answer: What stands behind ``Final Answer:`` on a line of its own but the first; None
            without one.
    """

    operates: bool
    sql: str | None
    answer: str | None


def read(reply: str) -> Reading:
    """Read a reply as AgentBench v0.2 and CycleQD do: exact words, the first match of each.

    ``Action: Operation`` must end its line; an answer's line must have one before it.
    """
    action = _ACTION.search(reply)
    sql = _SQL.search(reply)
    answer = _FINAL.search(reply)
    return Reading(
        operates=action is not None and action[1] == "Operation",
        sql=sql[1].strip().replace("\n", " ") if sql else None,
        answer=answer[1] if answer else None,
    )
