"""The answer's own process: give everything up, then run text written by a model.

From `become_powerless` on nothing here is trusted: the text can change any object of this
interpreter. Whatever arrives at the other end of its pipes is data.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import types
from collections.abc import Mapping
from typing import Any

from . import landlock, seccomp
from .kernel import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, drop_capabilities, prctl
from .values import from_json, to_json

REPLY = 3  # the descriptor that python and sql answers report on
READY = b"R"  # first on that descriptor: what comes after is the answer's own doing
OPEN_FILES = 128


def become_powerless(
    limits: Mapping[str, Any],
    environment: Mapping[str, str],
    program: bytes,
    *,
    rules: int | None = None,
    uid: int | None = None,
) -> None:
    """Set resource limits, then drop user, files, capabilities and system calls, in that order.

    Args:
        limits: The request's limits; `tasks` is the RLIMIT_NPROC to set.
        environment: The environment from now on.
        program: The assembled system-call filter.
        rules: Landlock rules to be bound by.
        uid: User to become (launched as root only).
    """
    if os.getsid(0) != os.getpid():
        os.setsid()
    memory = limits["memory_mb"] << 20
    seconds = math.ceil(limits["cpu_seconds"]) + 1
    disk = limits["disk_mb"] << 20
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    prctl(PR_SET_DUMPABLE, 1)  # the parent is not; /proc/self must stay readable here
    with open("/proc/self/oom_score_adj", "w") as file:  # rather this process than another
        file.write("1000")
    for kind, value in (
        (resource.RLIMIT_NPROC, limits["tasks"]),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_DATA, memory),
        # Reserved but unused address space is harmless, so this one is only a backstop.
        (resource.RLIMIT_AS, max(4 * memory, 1 << 30)),
        (resource.RLIMIT_FSIZE, disk),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(kind, (value, value))
    os.environ.clear()
    os.environ.update(environment)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if rules is not None:
        landlock.restrict(rules)
        os.close(rules)
    drop_capabilities()
    seccomp.install(program)


def run(request: Mapping[str, Any]) -> None:
    """Run the request's program in this process; never returns."""
    os.write(REPLY, READY)
    if request["kind"] == "shell":
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.execv("/bin/bash", ["bash", "--noprofile", "--norc", "-c", request["script"]])
    work = _python if request["kind"] == "python" else _sql
    reply: dict[str, Any]
    try:
        reply = {"value": work(request)}
    except MemoryError:
        reply = {"memory": True}
    except _Failure as failure:
        reply = {"failure": str(failure)}
    except OverflowError:
        reply = {"output": True}
    data = memoryview(json.dumps(reply).encode())
    while data:
        data = data[os.write(REPLY, data) :]
    os._exit(0)


class _Failure(Exception):
    """The program as a whole failed, before any input."""


def _describe(error: BaseException) -> str:
    name = type.__getattribute__(type(error), "__name__")
    try:
        text = f"{name}: {error}"
        text.encode()
    except BaseException:
        text = name
    return text[:300]


def _python(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    module = types.ModuleType("answer")
    sys.modules["answer"] = module
    try:
        code = compile(request["code"], "answer.py", "exec")
        # The one place where a model's text is executed: an unprivileged child in a box.
        exec(code, module.__dict__)  # noqa: S102
        function = getattr(module, request["entry"])
    except MemoryError:
        raise
    except BaseException as error:
        raise _Failure(_describe(error)) from None
    results = []
    for arguments in request["inputs"]:
        try:
            results.append({"ok": to_json(function(*from_json(arguments)))})
        except MemoryError:
            raise
        except BaseException as error:
            results.append({"error": _describe(error)})
    return results


def _sql(request: Mapping[str, Any]) -> dict[str, Any]:
    import sqlite3

    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    most = request["limits"]["output_bytes"] // 2  # no row takes less than two characters

    def rows(text: str) -> list[list[Any]]:
        found: list[list[Any]] = []
        for statement in _statements(text, sqlite3):
            cursor = connection.execute(statement)
            if cursor.description is None:
                continue
            found = []
            for row in cursor:
                found.append([to_json(cell) for cell in row])
                if len(found) > most:
                    raise OverflowError
        return found

    connection.execute("pragma temp_store = memory")
    try:
        connection.executescript(request["schema"])
    except sqlite3.Error as error:
        raise _Failure(f"schema: {_describe(error)}") from None
    # ATTACH is the way to files: VACUUM INTO needs it too.
    refused = {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH}
    connection.set_authorizer(
        lambda action, *_: sqlite3.SQLITE_DENY if action in refused else sqlite3.SQLITE_OK
    )
    result: dict[str, Any] = {}
    try:
        result["rows"] = rows(request["query"])
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        result["error"] = _describe(error)
    if request["probe"] is not None:
        try:
            result["probe"] = rows(request["probe"])
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            result["probe_error"] = _describe(error)
    return result


def _statements(text: str, sqlite3: types.ModuleType) -> list[str]:
    """Split at the semicolons that end a statement (quotes, comments and triggers respected)."""
    found, start, end = [], 0, text.find(";")
    while end >= 0:
        if sqlite3.complete_statement(text[start : end + 1]):
            found.append(text[start : end + 1])
            start = end + 1
        end = text.find(";", end + 1)
    found.append(text[start:])
    return [statement for statement in found if statement.strip(" \t\r\n;")]
