"""Ordinary answers in the three languages."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from cqd_hub.errors import UserError
from cqd_hub.evaluation.sandbox import (
    PythonCall,
    ShellScript,
    SqlQuery,
    Status,
    from_json,
    to_json,
)
from cqd_hub.evaluation.sandbox._programs import outcome_of

from .conftest import Box

SCHEMA = "create table t (a integer, b text); insert into t values (1, 'x'), (2, null), (3, 'z');"


def test_python_calls_the_entry_for_every_input(box: Box) -> None:
    code = "import math\ndef f(a, b):\n    return math.gcd(a, b)"
    outcome = box.run(PythonCall(code, "f", ((12, 18), (7, 5), (1, "x"))))
    assert outcome.status is Status.FINISHED
    assert outcome.value[:2] == [{"ok": 6}, {"ok": 1}]
    assert outcome.value[2]["error"].startswith("TypeError: ")
    assert 0 < outcome.cpu_seconds < 2


def test_python_values_keep_their_types(box: Box) -> None:
    value = {"a": (1, 2.5, None), 3: {True, 4}, "b": b"\xff", "c": [float("inf"), 1j, frozenset()]}
    outcome = box.run(PythonCall("def same(x): return x", "same", ((to_json(value),),)))
    assert from_json(outcome.value[0]["ok"]) == value


TAGS = ("tuple", "set", "frozenset", "dict", "bytes", "float", "complex", "nothing")


def any_reply(random: random.Random, depth: int = 4) -> Any:
    kind = random.randrange(4 if depth else 2)
    if kind == 0:
        return random.choice([None, True, 0, -1, 2**61 - 1, 10**400, 1e308, -0.0, 1e-320])
    if kind == 1:
        return random.choice(["", "zz", "ff", "nan", "-inf", "1e999", "9" * 5000, "\0", "\udc80"])
    items = [any_reply(random, depth - 1) for _ in range(random.randrange(4))]
    if kind == 2:
        return items
    content = random.choice([items, [items], [items, items], *items])
    return {f"__{random.choice(TAGS)}__": content}


def reported(value: Any) -> Status:
    call = PythonCall("", "f", ((),))
    reply = json.dumps({"value": [{"ok": value}]})
    report = {"end": "exit", "cpu": 0.1, "exit": 0, "stderr": "", "reply": reply}
    return outcome_of(call, report).status


def test_no_reply_raises_here() -> None:
    source = random.Random(7)
    statuses = {reported(any_reply(source)) for _ in range(3000)}
    assert statuses == {Status.FINISHED, Status.FAILED}


def test_members_picked_to_collide_are_refused_and_large_sets_are_not() -> None:
    same = [i * (2**61 - 1) for i in range(65)]
    for value in (
        {"__set__": same},
        {"__frozenset__": same},
        {"__dict__": [[one, 0] for one in same]},
        {"__set__": [{"__tuple__": [one]} for one in same]},
    ):
        assert reported(value) is Status.FAILED
    for large in (set(range(-50_000, 50_000)), {(i, str(i)): 2**i for i in range(3000)}):
        assert from_json(to_json(large)) == large


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("def f(): return object()", "TypeError: a value of type object"),
        ("def f(): return iter([])", "TypeError: a value of type list_iterator"),
        ("def f(): return '\\ud800'", "UnicodeEncodeError"),
        ("def f(): return 10 ** 5000", "ValueError: an integer too long"),
        ("def f(): return f()", "RecursionError"),
        ("def f():\n x = []\n x.append(x)\n return x", "RecursionError"),
        ("def f(): raise SystemExit(3)", "SystemExit: 3"),
        ("def f(): return input()", "EOFError"),
    ],
)
def test_python_errors_are_values(box: Box, code: str, error: str) -> None:
    outcome = box.run(PythonCall(code, "f", ((),)))
    assert outcome.status is Status.FINISHED
    assert outcome.value[0]["error"].startswith(error)


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("def f(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("x = 1", "AttributeError"),
        ("import sys; sys.exit(0)", "SystemExit"),
    ],
)
def test_python_that_does_not_define_the_entry_fails(box: Box, code: str, detail: str) -> None:
    outcome = box.run(PythonCall(code, "f", ((),)))
    assert (outcome.status, outcome.value) == (Status.FAILED, None)
    assert detail in outcome.detail


def test_python_repeats_exactly(box: Box) -> None:
    code = "import random\ndef f(): return [random.random(), hash('a'), list({'x', 'y', 'z'})]"
    program = PythonCall(code, "f", ((),))
    assert box.run(program).value == box.run(program).value


def test_python_can_use_the_library_and_asyncio(box: Box) -> None:
    code = """
import asyncio, threading, csv, difflib, xml.dom.minidom
async def twice(x):
    await asyncio.sleep(0)
    return 2 * x
def f(x):
    found = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(twice(x))))
    thread.start(); thread.join()
    return found
"""
    if box.kind == "docker":
        code = code.replace(", xml.dom.minidom", "")
    assert box.run(PythonCall(code, "f", ((4,),))).value == [{"ok": [8]}]


def test_shell_gives_output_exit_code_and_effects(box: Box) -> None:
    script = "cat notes/a.txt; mkdir -p out/deep; tr a-z A-Z < notes/a.txt > out/b;"
    script += "ln -s b out/l; exit 3"
    value = box.run(ShellScript(script, {"notes/a.txt": "one\n"})).value
    assert (value["stdout"], value["exit_code"]) == ("one\n", 3)
    assert value["files"] == {"notes/a.txt": "one\n", "out/b": "ONE\n"}
    assert value["folders"] == ["notes", "out", "out/deep"]
    assert value["links"] == {"out/l": "b"}


def test_shell_ends_when_the_script_ends(box: Box) -> None:
    outcome = box.run(ShellScript("sleep 100 & echo started | tee >(cat > copy); exit 0"))
    assert (outcome.status, outcome.value["stdout"]) == (Status.FINISHED, "started\n")


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "", "a\0b"])
def test_paths_stay_in_the_folder(path: str) -> None:
    with pytest.raises(UserError, match="not inside"):
        ShellScript("true", {path: ""})


def test_sql_rows_and_effects(box: Box) -> None:
    query = "-- first; comment\nupdate t set b = 'a;b' where a = 2; select a, b from t where a < 3;"
    outcome = box.run(SqlQuery(SCHEMA, query, "select count(*) from t where b = 'a;b'"))
    assert outcome.value == {"rows": [[1, "x"], [2, "a;b"]], "probe": [[1]]}


def test_sql_errors_are_values(box: Box) -> None:
    outcome = box.run(SqlQuery(SCHEMA, "drop table t; selekt 1", "select * from t"))
    assert outcome.status is Status.FINISHED
    assert outcome.value["error"].startswith("OperationalError: near")
    assert "no such table" in outcome.value["probe_error"]
