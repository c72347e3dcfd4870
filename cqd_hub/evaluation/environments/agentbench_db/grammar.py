"""How a reply in AgentBench's text dialect is read."""

from __future__ import annotations

import re
from typing import NamedTuple

_LONGEST = 1 << 17  # characters of a reply that are read
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
    reply = reply[:_LONGEST]
    action = _between(reply, "Action: ", "\n")
    sql = _between(reply, "```sql\n", "\n```")
    answer = _FINAL.search(reply)
    return Reading(
        operates=action == "Operation",
        sql=None if sql is None else sql.strip().replace("\n", " "),
        answer=answer[1] if answer else None,
    )


def _between(text: str, first: str, last: str) -> str | None:
    """What ``first(.*?)last`` finds, in linear time: who has no end behind it has none later."""
    _, found, rest = text.partition(first)
    inside, ended, _ = rest.partition(last)
    return inside if found and ended else None
