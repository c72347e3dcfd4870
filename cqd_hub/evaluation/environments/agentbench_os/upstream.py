"""AgentBench's own prompts, read as data from a person's checkout; nothing of it is executed.

They stand in the task's Python file as literals. The function-calling version describes its tools
in ``configs/tasks/os.yaml``. CycleQD's samples, as JSON, carry theirs.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cqd_hub.errors import UserError
from cqd_hub.evaluation.environments.agentbench_os import cycleqd
from cqd_hub.evaluation.environments.agentbench_os.prompts import Prompts
from cqd_hub.evaluation.episodes import Message, Tool
from cqd_hub.recipe import read_yaml

_TASK = "src/server/tasks/os_interaction/task.py"
_ROLES = {"user": "user", "agent": "assistant", "assistant": "assistant"}


def upstream_prompts(path: Path, *, tools: bool, where: str) -> Prompts:
    """Read the prompts of the dialect with *tools*, or of the text dialects.

    Args:
        path: A checkout of AgentBench (branch v0.2 for text, main for tools), its task.py, or
            CycleQD's samples as JSON (text).

    Raises:
        UserError: They are not there.
    """
    if path.suffix == ".json" and not tools:
        return _of_samples(path, where)
    file = path / _TASK if path.is_dir() else path
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError, RecursionError) as error:
        raise UserError(
            f"no prompts can be read from {file}: {error}",
            where=where,
            remedy="give a checkout of AgentBench, or prompts: own",
        ) from None
    checkout = file.parents[4] if len(file.parents) > 4 else file.parent
    prompts = _with_tools(tree, checkout) if tools else _as_text(tree)
    if prompts is None:
        version = "the function-calling version (main)" if tools else "version 0.2 (branch v0.2)"
        raise UserError(
            f"{file} does not hold the prompts of AgentBench's {version}",
            where=where,
            remedy="check out that branch, choose another dialect, or prompts: own",
        )
    return prompts


def _as_text(tree: ast.AST) -> Prompts | None:
    """The instruction (the constant that explains the acts), the one-shot turns, the bridge."""
    turns: list[dict[str, str]] | None = None
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _named(node.targets[0]) == "ONE_SHOT":
            turns = _literal(node.value)
    sums = [
        (node.left.value, node.right)
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)
        if isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)
    ]
    # "…" + ONE_SHOT[0]["content"] follows the instruction; "…" + config.description is the problem,
    # and of these the one that is no continuation starts the message after the example.
    first = [text for text, right in sums if isinstance(right, ast.Subscript)]
    bridges = [text for text, right in sums if _named(right) == "description"]
    bridges = [text for text in bridges if text not in first]
    instructions = [text for text in _texts(tree) if "Act: bash" in text and "Act: finish" in text]
    if not (turns and first and bridges and instructions):
        return None
    opening = [Message("user", instructions[0] + first[0] + turns[0]["content"])]
    for turn in turns[1:]:
        opening.append(Message(_ROLES[turn["role"]], turn["content"]))  # type: ignore[arg-type]
    return Prompts(tuple(opening), bridges[0], "", "", (), "upstream")


def _with_tools(tree: ast.AST, checkout: Path) -> Prompts | None:
    system = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _named(node.targets[0]) == "system_message"
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    said: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg == "content":
                    said.setdefault(_named(node.func), []).append(keyword.value)
    users, replies = (
        said.get(f"ChatCompletion{role}MessageParam", []) for role in ("User", "Tool")
    )
    before = [
        part.value
        for value in users
        if isinstance(value, ast.JoinedStr) and isinstance(part := value.values[0], ast.Constant)
    ]
    no_call = [value.value for value in users if isinstance(value, ast.Constant)]
    bad_call = [value.value for value in replies if isinstance(value, ast.Constant)]
    if not (system and before and no_call and bad_call):
        return None
    opening = (Message("system", system[0]),)
    return Prompts(
        opening, str(before[0]), str(no_call[0]), str(bad_call[0]), _tools(checkout), "upstream"
    )


def _tools(checkout: Path) -> tuple[Tool, ...]:
    path = checkout / "configs" / "tasks" / "os.yaml"
    try:
        functions = [tool["function"] for tool in read_yaml(path)["default"]["parameters"]["tools"]]
        return tuple(
            Tool(
                str(one["name"]),
                str(one["description"]),
                json.loads(json.dumps(one["parameters"])),
            )
            for one in functions
        )
    except (KeyError, TypeError):
        raise UserError(
            "describes no tools for the function-calling version",
            where=str(path),
            remedy="check out AgentBench's main branch",
        ) from None


def _of_samples(path: Path, where: str) -> Prompts:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))[0]
        _, fields = cycleqd.fields(record)
        *opening, problem = cycleqd.opening(record)
        before, found, rest = problem[1].rpartition(fields["description"])
        if not found or rest:
            raise KeyError("the description")
        messages = tuple(Message(_ROLES[role], content) for role, content in opening)  # type: ignore[arg-type]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(
            f"{path} holds no samples of CycleQD's with their prompts",
            where=where,
            remedy="give a checkout of AgentBench, or prompts: own",
        ) from None
    return Prompts(messages, before, "", "", (), "upstream")


def _texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _named(node: ast.AST) -> str:
    return getattr(node, "id", "") or getattr(node, "attr", "")


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
