"""What the model is told: our own words, or those of a checkout of AgentBench or CycleQD.

Their text is read from their source as a literal, never run, and never kept here.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cqd_hub.errors import UserError
from cqd_hub.evaluation.episodes import Message, Tool

from .data import Problem

_WHERE = "options.prompts"
# Dialect → where its checkout has the text, and under which name.
_SOURCES = {
    "agentbench-v0.2": ("src/server/tasks/dbbench/__init__.py", "big_prompt"),
    "cycleqd": ("tasks/agentbench_db.py", "db_prompt_template"),
    "agentbench-fc": ("src/server/tasks/dbbench/task.py", "SYSTEM_PROMPT"),
}
_TOOLS = "configs/tasks/dbbench.yaml"
_OWN_TEXT = """\
You have a MySQL database with one table. Each of your messages either runs one SQL statement or \
gives the final answer. First say briefly what you are going to do and why.

To run a statement, end your message with these lines, the statement on one line:
Action: Operation
```sql
SELECT `a column` FROM `a table`;
```
My next message is what MySQL printed, cut off where it is long.

When you know the answer, end your message with these two lines:
Action: Answer
Final Answer: ["first value", "second value"]
Give the values exactly as the table has them, and no others. Where you were asked to change the \
table, the change itself is what counts, and the list may hold anything.
A message without either form ends the task as failed.
"""
_OWN_SYSTEM = """\
You have a MySQL database with one table, and two functions: execute_sql runs one SQL statement \
and returns what MySQL printed, cut off where it is long; commit_final_answer ends the task. Think \
first, look at the table where you need to, then commit the values that answer the question, \
exactly as the table has them, and no others. Where you are asked to change the table, make the \
change and commit any answer. Answer through the functions alone.
"""
_OWN_PARTS = {
    "evidence": "It is known that: ",
    "add_description": "About the table: ",
    "description": "Question: ",
}
_OWN_TOOLS = (
    Tool(
        "execute_sql",
        "Run one SQL statement and return what the database printed.",
        {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "The statement."}},
            "required": ["query"],
            "additionalProperties": False,
        },
    ),
    Tool(
        "commit_final_answer",
        "End the task with the final answer.",
        {
            "type": "object",
            "properties": {
                "answers": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "The values asked for.",
                }
            },
            "required": ["answers"],
            "additionalProperties": False,
        },
    ),
)


class Prompts(NamedTuple):
    """What stands before a problem.

    Args:
        whose: own, no, upstream or given (a text file's).
        text: The instruction; empty for none.
        parts: Function calling: what introduces each field of a record, in order.
        tools: Function calling: the functions.
    """

    whose: str
    text: str
    parts: Mapping[str, str]
    tools: tuple[Tool, ...]

    @property
    def kind(self) -> str:
        """Names the text in the environment's kind; what was read from a file, by its digest."""
        if self.whose not in ("upstream", "given"):
            return f"{self.whose}-prompts"
        words = repr((self.text, sorted(self.parts.items()), self.tools))
        digest = hashlib.sha256(words.encode(errors="surrogatepass")).hexdigest()
        return f"{self.whose}-prompts-{digest[:8]}"

    def opening(self, problem: Problem) -> tuple[Message, ...]:
        """A text dialect's conversation before the first reply."""
        asked = Message("user", f"{problem.description}\n{problem.about}")
        if not self.text:
            return (asked,)
        return (Message("user", self.text), Message("assistant", "Ok."), asked)

    def calling(self, problem: Problem) -> tuple[Message, ...]:
        """The function-calling dialect's."""
        fields = {
            "evidence": problem.evidence,
            "add_description": problem.about,
            "description": problem.description,
        }
        asked = "".join(
            f"{words}{fields[name]}\n" for name, words in self.parts.items() if fields[name]
        )
        system = (Message("system", self.text),) if self.text else ()
        return (*system, Message("user", asked))


def read_prompts(prompts: str, dialect: str, folder: Path) -> Prompts:
    """See the option `prompts`.

    Raises:
        UserError: No such file, or it holds no such text.
    """
    calls = dialect == "agentbench-fc"
    tools: tuple[Tool, ...] = _OWN_TOOLS if calls else ()
    if prompts == "none":
        return Prompts("no", "", dict.fromkeys(_OWN_PARTS, ""), tools)
    if prompts == "own":
        return Prompts("own", _OWN_SYSTEM if calls else _OWN_TEXT, _OWN_PARTS, tools)
    place = folder / Path(prompts).expanduser()
    source, name = _SOURCES[dialect]
    file = place / source if place.is_dir() else place
    if not file.is_file():
        raise UserError(
            f"{dialect}: no such file: {file}",
            where=_WHERE,
            remedy="name a checkout of that version, its file with the prompt, a text file, or own",
        )
    text = file.read_text(encoding="utf-8", errors="replace")
    if file.suffix != ".py":
        return Prompts("given", text, _OWN_PARTS, tools)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(f"is no Python: {error}", where=str(file), remedy="take it anew") from None
    found = _constant(tree, name)
    if found is None:
        raise UserError(
            f"assigns no text to {name}",
            where=str(file),
            remedy=f"name a checkout that has the dialect {dialect}",
        )
    parts = (_parts(tree) or _OWN_PARTS) if calls else _OWN_PARTS
    if calls and place.is_dir():
        tools = _read_tools(place / _TOOLS) or tools
    return Prompts("upstream", found, parts, tools)


def _constant(tree: ast.Module, name: str) -> str | None:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            return node.value.value
    return None


def _parts(tree: ast.Module) -> dict[str, str]:
    """From ``x += "words" + entry["field"] + …``: field → words, in order."""
    found = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.AugAssign):
            continue
        words = [
            each.value
            for each in ast.walk(node.value)
            if isinstance(each, ast.Constant) and isinstance(each.value, str)
        ]
        field = next((word for word in words if word in _OWN_PARTS), None)
        before = next((word for word in words if word.strip() and word not in _OWN_PARTS), None)
        if field is not None and before is not None:
            found[field] = before
    return found if found.keys() == _OWN_PARTS.keys() else {}


def _read_tools(file: Path) -> tuple[Tool, ...]:
    """The functions as the task's configuration describes them; none where it does not."""
    try:
        data: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        described = [each["function"] for each in data["default"]["parameters"]["tools"]]
        return tuple(
            Tool(each["name"], each["description"], each["parameters"]) for each in described
        )
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return ()
