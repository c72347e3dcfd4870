"""What is run, within which limits, and what came of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from cqd_hub.errors import RunError, UserError

from .box.values import from_json

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


@dataclass(frozen=True)
class Limits:
    """Bounds of one answer, its whole process tree together.

    Attributes:
        cpu_seconds: CPU time; beyond it the verdict is `Status.CPU_LIMIT`.
        wall_seconds: Elapsed time; beyond it the run is repeated, or the answer found asleep.
        memory_mb: MiB per process, and (looked at every 25 ms) of the tree.
        processes: Processes and threads.
        files: Files and folders in the private folder.
        disk_mb: MiB in the private folder.
        output_bytes: Bytes printed, bytes replied, and bytes of files handed back, each.
    """

    cpu_seconds: float = 2.0
    wall_seconds: float = 10.0
    memory_mb: int = 256
    processes: int = 32
    files: int = 1000
    disk_mb: int = 16
    output_bytes: int = 65536


@dataclass(frozen=True)
class PythonCall:
    """Execute *code*, then call `entry(*args)` for every args of *inputs*, in one process.

    Inputs and outputs are JSON with the tags of `to_json` (tuples, sets, bytes...).
    """

    code: str
    entry: str
    inputs: tuple[tuple[JSON, ...], ...]


@dataclass(frozen=True)
class ShellScript:
    """Run *script* with bash in a folder holding *files* (relative path to text).

    Raises:
        UserError: a path that is absolute, or leaves the folder.
    """

    script: str
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in self.files:
            parts = PurePosixPath(path).parts
            if not parts or path.startswith("/") or ".." in parts or "\0" in path:
                raise UserError(
                    f"the path {path!r} is not inside the script's folder",
                    remedy="use relative paths without '..'",
                )


@dataclass(frozen=True)
class SqlQuery:
    """Run *query* (one or more SQLite statements) in a new database made by *schema*.

    *probe* is a trusted SELECT that runs afterwards, to judge a modification by its effect.
    """

    schema: str
    query: str
    probe: str | None = None


Program: TypeAlias = PythonCall | ShellScript | SqlQuery


class Status(StrEnum):
    """How an answer ended. Each is the answer's own doing, so each may be cached."""

    FINISHED = "finished"
    CPU_LIMIT = "cpu limit"
    MEMORY_LIMIT = "memory limit"
    OUTPUT_LIMIT = "output limit"
    PROCESS_LIMIT = "process limit"  # landlock only; elsewhere fork() fails inside the answer
    DISK_LIMIT = "disk limit"  # landlock only; elsewhere writing fails inside the answer
    BLOCKED = "blocked"  # asleep until the wall limit while it could have had a core
    FAILED = "failed"  # exception, killed, or a reply that is not one


@dataclass(frozen=True)
class Outcome:
    """What came out of the box.

    Attributes:
        status: How the answer ended.
        value: None unless `FINISHED`. Python: per input `{"ok": value}` or `{"error": "Type: x"}`.
            Shell: `{"stdout", "stderr", "exit_code", "files": {path: text}, "folders": [path],
            "links": {path: target}}`. SQL: `{"rows": [[cell]]}` (of the last statement that has
            any) or `{"error"}`, with `"probe"` or `"probe_error"` where asked. Text in it is as the
            answer wrote it: pass it through `printable` before showing it on a terminal.
        detail: A short printable remark.
        cpu_seconds: CPU time of the process tree.
    """

    status: Status
    value: Any
    detail: str
    cpu_seconds: float


class SandboxFailure(RunError):
    """The machine, not the answer, failed (after retries in fresh boxes). Never cache it."""


def printable(text: str, most: int = 200) -> str:
    """*text* without line breaks and control characters, at most *most* characters."""
    clean = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * most])
    return " ".join(clean.split())[:most]


def request_of(program: Program, limits: Limits) -> dict[str, Any]:
    """The program as the box reads it."""
    kind = {PythonCall: "python", ShellScript: "shell", SqlQuery: "sql"}[type(program)]
    content = {item.name: getattr(program, item.name) for item in dataclasses.fields(program)}
    if isinstance(program, ShellScript):
        content["files"] = dict(program.files)
    return {"kind": kind, **content, "limits": dataclasses.asdict(limits)}


_ENDS = {
    "cpu": (Status.CPU_LIMIT, "over the CPU limit"),
    "memory": (Status.MEMORY_LIMIT, "over the memory limit"),
    "output": (Status.OUTPUT_LIMIT, "over the output limit"),
    "tasks": (Status.PROCESS_LIMIT, "too many processes"),
    "disk": (Status.DISK_LIMIT, "too many files or bytes written"),
    "blocked": (Status.BLOCKED, "asleep until the wall limit"),
    "unreadable": (Status.FAILED, "its files cannot be read back"),
}


def outcome_of(program: Program, report: Mapping[str, Any]) -> Outcome:
    """Judge a box's report by form; what the answer controls in it is only ever data."""
    end, cpu = report["end"], float(report["cpu"])
    if end != "exit":
        status, detail = _ENDS[end]
        return Outcome(status, None, detail, cpu)
    code, errors = report["exit"], report["stderr"].strip().splitlines()
    last = printable(errors[-1]) if errors else ""
    if isinstance(program, ShellScript):
        names = ("stdout", "stderr", "files", "folders", "links")
        value = {"exit_code": code, **{name: report[name] for name in names}}
        return Outcome(Status.FINISHED, value, last, cpu)
    try:
        reply = json.loads(report["reply"], parse_constant=_refuse)
        json.dumps(reply, ensure_ascii=False).encode()
        from_json(reply)
    except (ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
        reply = None
    if isinstance(reply, dict) and len(reply) == 1:
        ((key, content),) = reply.items()
        if key == "memory":
            return Outcome(Status.MEMORY_LIMIT, None, "over the memory limit", cpu)
        if key == "output":
            return Outcome(Status.OUTPUT_LIMIT, None, "too many rows", cpu)
        if key == "failure":
            return Outcome(Status.FAILED, None, printable(str(content)), cpu)
        if key == "value" and _fits(program, content):
            return Outcome(Status.FINISHED, content, "", cpu)
    ended = f"killed by signal {-code}" if code < 0 else "ended without a proper reply"
    return Outcome(Status.FAILED, None, f"{ended}: {last}" if last else ended, cpu)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _fits(program: Program, content: Any) -> bool:
    if isinstance(program, PythonCall):
        return (
            isinstance(content, list)
            and len(content) == len(program.inputs)
            and all(
                isinstance(item, dict)
                and (item.keys() == {"ok"} or item.keys() == {"error"})
                and isinstance(item.get("error", ""), str)
                for item in content
            )
        )
    if not isinstance(content, dict):
        return False
    tables = [content[key] for key in ("rows", "probe") if key in content]
    texts = [content[key] for key in ("error", "probe_error") if key in content]
    return (
        content.keys() <= {"rows", "error", "probe", "probe_error"}
        and ("rows" in content) != ("error" in content)
        and all(isinstance(table, list) for table in tables)
        and all(isinstance(row, list) for table in tables for row in table)
        and all(isinstance(text, str) for text in texts)
    )
