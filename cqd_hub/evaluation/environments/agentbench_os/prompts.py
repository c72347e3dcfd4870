"""What a model is told: in words of our own, in upstream's read from a checkout, or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from cqd_hub.evaluation.episodes import Message, Tool


@dataclass(frozen=True)
class Prompts:
    """All text that is put to the model apart from the problem and the machine's output.

    Attributes:
        opening: The conversation before the problem.
        before: Put in front of the problem in its message.
        no_call, bad_call: Said to a reply without a function call, and to one that cannot be read.
        tools: Functions described to the model.
        whose: ``own``, ``no`` or ``upstream``.
    """

    opening: tuple[Message, ...]
    before: str
    no_call: str
    bad_call: str
    tools: tuple[Tool, ...]
    whose: str

    @property
    def kind(self) -> str:
        """Names the text in the environment's kind; texts that were read, by their digest."""
        if self.whose != "upstream":
            return f"{self.whose}-prompts"
        return f"upstream-prompts-{hashlib.sha256(repr(astuple(self)).encode()).hexdigest()[:8]}"


# Said where a conversation has no instruction: the tools alone explain themselves.
NO_CALL = "This is no function call. Call one of the functions."
BAD_CALL = "There is no such function, or its argument is missing."


def _tool(name: str, description: str, argument: str, meaning: str) -> Tool:
    properties = {argument: {"type": "string", "description": meaning}}
    parameters = {"type": "object", "properties": properties, "required": [argument]}
    return Tool(name, description, {**parameters, "additionalProperties": False})


TOOLS = (
    _tool(
        "bash_action",
        "Run a bash script in the machine's shell and see what it prints.",
        "script",
        "The script.",
    ),
    _tool(
        "finish_action",
        "Say that what was asked for has been done.",
        "thought",
        "Why the task is done.",
    ),
    _tool(
        "answer_action",
        "Give the answer to the question.",
        "answer",
        "The answer alone, without a sentence around it.",
    ),
)

_INSTRUCTION = """\
You have the shell of a Linux machine, as root. I give you a question to answer or a task to do on \
it. Work step by step. In each turn write one line that begins with "Think:" and says what you are \
going to do, and then exactly one act. There are three acts.

To run commands, write:

Act: bash

```bash
the commands
```

I run them in the same shell each time and show you what they print. Output of more than 800 \
characters is cut off, so count and filter in the shell. Nobody can type anything in: do not start \
programs that ask for input.

When you know the answer to a question, write it in parentheses, as short as it can be, for \
example only a number:

Act: answer(42)

When you have done a task that has no answer, write:

Act: finish

Here is an example.

How many regular files are directly in /var/log?"""

_EXAMPLE = (
    "Think: I list the regular files of that folder alone and count the lines.\n\n"
    "Act: bash\n\n```bash\nfind /var/log -maxdepth 1 -type f | wc -l\n```",
    "The output of the OS:\n\n9\n",
    "Think: The count is 9.\n\nAct: answer(9)",
)

_TOOL_INSTRUCTION = """\
You have the shell of a Linux machine, as root. You are given a question to answer or a task to do \
on it. Work step by step and call exactly one function in each turn; text without a call does \
nothing. Scripts run in the same shell each time. Output of more than 800 characters is cut off, \
so count and filter in the shell. Nobody can type anything in: do not start programs that ask for \
input. Give an answer with answer_action, as short as it can be, for example only a number; say \
with finish_action that a task without an answer is done."""


def own_prompts(*, tools: bool) -> Prompts:
    """Our own instruction, with an example in the text dialects."""
    if tools:
        opening: Sequence[Message] = [Message("system", _TOOL_INSTRUCTION)]
        return Prompts(tuple(opening), "The problem:\n\n", NO_CALL, BAD_CALL, TOOLS, "own")
    act, seen, answer = _EXAMPLE
    opening = [
        Message("user", _INSTRUCTION),
        Message("assistant", act),
        Message("user", seen),
        Message("assistant", answer),
    ]
    before = "That was right. Now there is another machine with another problem:\n\n"
    return Prompts(tuple(opening), before, "", "", (), "own")


def no_prompts(*, tools: bool) -> Prompts:
    """Only the problem."""
    return Prompts((), "", NO_CALL, BAD_CALL, TOOLS if tools else (), "no")
