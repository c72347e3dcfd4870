"""What a reply asks for: in the text dialects a line ``Act: …``, with tools a function call."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_ACT = re.compile(r"Act:\s*(.+)")
_BLOCK = re.compile(r"```bash\n(.*?)\n```", re.DOTALL)


class Bash(NamedTuple):
    """Run *script* in the shell."""

    script: str


class Commit(NamedTuple):
    """The end: an *answer*, or None where the task is said to be done."""

    answer: str | None


Action = Bash | Commit


def parse_text(reply: str) -> Action | None:
    """The last act of *reply* that can be read, as AgentBench v0.1 and v0.2 read it; None: none.

    Acts are tried from the last to the first, their names in any case and followed by anything.
    ``answer`` takes what stands between the first ``(`` and the last ``)`` of its line and is
    passed over without them. ``bash`` runs all fenced bash blocks of the reply, wherever they
    stand, with a blank line between.
    """
    for act in reversed(_ACT.findall(reply)):
        name = act.lower()
        if name.startswith("bash"):
            return Bash("\n\n".join(_BLOCK.findall(reply)))
        if name.startswith("finish"):
            return Commit(None)
        if name.startswith("answer"):
            left, right = act.find("("), act.rfind(")")
            if left >= 0 and right >= 0:
                return Commit(act[left + 1 : right])
    return None


def parse_call(name: str, arguments: Mapping[str, Any]) -> Action | None:
    """The action of a function call, as AgentBench's function-calling version reads it.

    The first argument counts, whatever it is called; ``finish_action`` answers with its thought.
    A command that is no text does nothing. None: no such function, or no argument.
    """
    first = next(iter(arguments.values()), None)
    if name == "bash_action" and arguments:
        return Bash(first if isinstance(first, str) else "")
    if name == "finish_action" or (name == "answer_action" and arguments):
        return Commit(None if first is None else str(first))
    return None
