"""Tasks whose answers are programs: what to run for a sample, and whether what came out is right.

The expected values stay here, outside the sandbox. A task YAML opts in with
``metadata: {execution: python | shell | sql}`` and documents with these fields:

- python: ``entry`` (function name), ``inputs`` (argument lists), ``expected`` (one value each)
- shell: ``files`` (path: content), ``expected: {stdout, files}``, all files afterwards
- sql: ``schema``, optional ``probe`` (SELECT), ``ordered``, ``expected: {rows, probe}``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cqd_hub.errors import UserError
from cqd_hub.evaluation.sandbox import (
    Outcome,
    Program,
    PythonCall,
    ShellScript,
    SqlQuery,
    Status,
)

Document = Mapping[str, Any]


class Execution(NamedTuple):
    """One language: the fields a document must have, its program, and its judge."""

    fields: Mapping[str, type]
    program: Callable[[Document, str], Program]
    right: Callable[[Document, Any], bool]

    def fault(self, document: Document) -> str | None:
        """What is wrong with a document, or None."""
        fields = self.fields
        if self.program is _sql and document.get("probe"):
            fields = {**fields, "expected.probe": list}
        for path, kind in fields.items():
            value: Any = document
            for key in path.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            if not isinstance(value, kind):
                return f"has no {path} of type {kind.__name__}"
        if self.program is _python and len(document["inputs"]) != len(document["expected"]):
            return "has not one expected value for each input"
        try:
            self.program(document, "")
        except (UserError, TypeError, ValueError) as error:
            return f"makes no program: {error}"
        return None


def judge(execution: Execution, document: Document, outcome: Outcome) -> tuple[float, str]:
    """Return the score (0 or 1) and a note on why not."""
    if outcome.status is not Status.FINISHED:
        return 0.0, f"{outcome.status}: {outcome.detail}" if outcome.detail else str(outcome.status)
    if execution.right(document, outcome.value):
        return 1.0, ""
    return 0.0, "wrong result"


def _python(document: Document, text: str) -> Program:
    inputs = tuple(tuple(arguments) for arguments in document["inputs"])
    return PythonCall(code=text, entry=document["entry"], inputs=inputs)


def _python_right(document: Document, value: Any) -> bool:
    expected = document["expected"]
    return len(value) == len(expected) and all(
        "ok" in result and same(result["ok"], wanted)
        for result, wanted in zip(value, expected, strict=True)
    )


def _shell(document: Document, text: str) -> Program:
    return ShellScript(script=text, files=dict(document["files"]))


def _shell_right(document: Document, value: Any) -> bool:
    wanted = document["expected"]
    return (
        value["stdout"].rstrip("\n") == wanted["stdout"].rstrip("\n")
        and value["files"] == dict(wanted["files"])
        and not value["links"]
    )


def _sql(document: Document, text: str) -> Program:
    return SqlQuery(schema=document["schema"], query=text, probe=document.get("probe") or None)


def _sql_right(document: Document, value: Any) -> bool:
    if "error" in value:
        return False
    wanted = document["expected"]
    if document.get("probe") and not same(value.get("probe"), wanted["probe"]):
        return False
    if document.get("ordered"):
        return same(value["rows"], wanted["rows"])
    return same(sorted(value["rows"], key=_rank), sorted(wanted["rows"], key=_rank))


def _rank(row: list[Any]) -> list[tuple[int, Any]]:
    """Sorts rows so that 1 and 1.0 have the same place."""
    return [
        (0, 0)
        if cell is None
        else (1, cell)
        if isinstance(cell, int | float)
        else (2, cell)
        if isinstance(cell, str)
        else (3, repr(cell))
        for cell in row
    ]


EXECUTIONS = {
    "python": Execution({"entry": str, "inputs": list, "expected": list}, _python, _python_right),
    "shell": Execution(
        {"files": Mapping, "expected.stdout": str, "expected.files": Mapping},
        _shell,
        _shell_right,
    ),
    "sql": Execution({"schema": str, "expected.rows": list}, _sql, _sql_right),
}


def same(value: Any, wanted: Any) -> bool:
    """JSON equality that tells ``true`` from 1 but not 1 from 1.0."""
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(value, list) and isinstance(wanted, list):
        return len(value) == len(wanted) and all(map(same, value, wanted))
    if isinstance(value, dict) and isinstance(wanted, dict):
        return value.keys() == wanted.keys() and all(same(value[k], wanted[k]) for k in value)
    return type(value) in (int, float, str, type(None)) and value == wanted
