"""What the model is shown: problems, and what their visible assertions gave."""

from __future__ import annotations

import ast
import doctest
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from cqd_hub.errors import UserError
from cqd_hub.evaluation.episodes import Message
from cqd_hub.recipe.load import read_yaml

from .data import Task

Dialect = Literal["evalplus", "cycleqd"]
OWN = "own"
NONE = "none"
_CHAT = """\
Solve the problem below in Python. Reply with one fenced block of code that is complete by itself: \
its imports, the function {entry} and whatever it calls. Leave out tests and examples.

```python
{prompt}
```"""
# The markers, and the places of system text, task and assertion, are those that the coding expert
# was trained with; the sentences are ours.
_LAYOUT = """\
{system}

@@ Instruction:
{user}

@@ Response:
"""
_SYSTEM = "You write Python functions that do exactly what is asked."
_USER = """\
{task} This assertion has to hold:
```python
{assertion}
```"""


class Prompts(NamedTuple):
    """Texts with the places ``{prompt}``, ``{entry}``, ``{task}`` and ``{assertion}``.

    Args:
        words: Whose they are: ``own``, ``no`` or ``given``.
        user: What is asked.
        system: What stands before; may be empty.
        dialect: Its layout.
    """

    words: str
    user: str
    system: str
    dialect: Dialect

    @property
    def kind(self) -> str:
        """Names the texts in the environment's kind; those of a file by their digest."""
        if self.words != "given":
            return f"{self.words}-prompts"
        texts = json.dumps([self.user, self.system])
        return f"given-prompts-{hashlib.sha256(texts.encode()).hexdigest()[:8]}"

    def opening(self, task: Task) -> tuple[Message, ...]:
        """The conversation before the first reply."""
        assertions = visible_assertions(task)
        places = {
            "{prompt}": task.prompt.strip("\n") if self.words != "no" else task.prompt,
            "{entry}": task.entry,
            "{task}": _sentence(task.prompt),
            "{assertion}": "\n".join(assertions),
        }
        user = _filled(self.user, places)
        if self.dialect == "cycleqd" and self.words != "no":
            layout = {"{system}": self.system, "{user}": user}
            return (Message("user", _filled(_LAYOUT, layout)),)
        system = (Message("system", self.system),) if self.system else ()
        return (*system, Message("user", user))

    def feedback(self, failures: Sequence[tuple[str, str]]) -> Message:
        """What the model sees of visible assertions that failed."""
        listed = "\n".join(f"{text}  # {remark}" for text, remark in failures)
        if self.words == "no":
            return Message("user", f"{listed}\n")
        return Message("user", f"That does not pass:\n\n{listed}\n\nGive the whole program again.")


def choose_prompts(prompts: str, dialect: Dialect, folder: Path) -> Prompts:
    """Return the texts that an option names: ``own``, ``none``, or a YAML file's.

    Such a file has the keys ``user`` and, if wanted, ``system``.

    Raises:
        UserError: The file is missing or says something else.
    """
    if prompts == NONE:
        return Prompts("no", "{prompt}", "", dialect)
    if prompts == OWN:
        if dialect == "cycleqd":
            return Prompts("own", _USER, _SYSTEM, dialect)
        return Prompts("own", _CHAT, "", dialect)
    path = folder / Path(prompts).expanduser()
    content = read_yaml(path)
    texts = {key: content[key] for key in content}
    if (
        not {"user"} <= texts.keys() <= {"user", "system"}
        or not all(isinstance(text, str) for text in texts.values())
        or not any(place in texts["user"] for place in ("{prompt}", "{task}"))
    ):
        raise UserError(
            "is no file of prompts",
            where=str(path),
            remedy="give `user`, a text with {prompt} (or {task} and {assertion}), and, if "
            "wanted, `system`",
        )
    return Prompts("given", texts["user"], texts.get("system", ""), dialect)


def visible_assertions(task: Task) -> list[str]:
    """The assertions of a problem's text, its interactive examples among them."""
    found = []
    for line in task.prompt.splitlines():
        if line.startswith("assert ") and _is_assertion(line):
            found.append(line)
    if found:
        return found
    try:
        examples = doctest.DocTestParser().get_examples(_docstring(task))
    except ValueError:
        return []
    for example in examples:
        line = f"assert {example.source.strip()} == {example.want.strip()}"
        if example.want and _is_assertion(line):
            found.append(line)
    return found


def _docstring(task: Task) -> str:
    """Of the function whose head the prompt is."""
    try:
        body = ast.parse(task.prompt.rstrip() + "\n    pass\n").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    return next(
        (ast.get_docstring(node) or "" for node in functions if node.name == task.entry), ""
    )


def _is_assertion(line: str) -> bool:
    try:
        body = ast.parse(line).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return len(body) == 1 and isinstance(body[0], ast.Assert)


def _sentence(prompt: str) -> str:
    """The problem's text without quotes and assertions, ending like a sentence."""
    lines = prompt.replace('"""', "").strip().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("assert ")).strip()
    return text if text.endswith(".") else f"{text}."


def _filled(text: str, places: dict[str, str]) -> str:
    """Fill every place at once, so that braces in a problem stay as they are."""
    parts = [text]
    for place, content in places.items():
        pieces = []
        for number, part in enumerate(parts):
            if number % 2:
                pieces.append(part)
                continue
            first, *rest = part.split(place)
            pieces.append(first)
            for piece in rest:
                pieces += [content, piece]
        parts = pieces
    return "".join(parts)
