"""Judges over real outcomes of the real sandbox."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cqd_hub.evaluation.execution import EXECUTIONS, judge, same
from cqd_hub.evaluation.sandbox import Outcome, Status, available, open_sandbox

KINDS = {state.kind: state.ok for state in available() if state.kind != "docker"}
pytestmark = pytest.mark.skipif(not any(KINDS.values()), reason="no sandbox works here")

TREE = {"notes.txt": "red 1\nblue 2\n", "docs/plan.md": "go\n"}
SCHEMA = (
    "CREATE TABLE pets(name TEXT, age INT, cost REAL);"
    "INSERT INTO pets VALUES('tim',3,1.5),('zoe',5,2),('ann',3,NULL);"
)


def verdicts(kind: str, document: dict[str, Any], texts: list[str]) -> list[tuple[float, str]]:
    execution = EXECUTIONS[kind]
    assert execution.fault(document) is None

    async def work() -> list[Outcome]:
        async with await open_sandbox() as sandbox:
            programs = (execution.program(document, text) for text in texts)
            return await asyncio.gather(*(sandbox.run(program) for program in programs))

    return [judge(execution, document, outcome) for outcome in asyncio.run(work())]


def test_python() -> None:
    document = {"entry": "f", "inputs": [[1, 2], [3, 4]], "expected": [3, 7]}
    texts = [
        "def f(a, b): return a + b",
        "f = lambda *n: float(sum(n))",  # 3.0 is 3
        "def f(a, b): return a * b",
        "def f(a, b): return 3 if a == 1 else None",
        "def f(a, b): return str(a + b)",
        "def f(a, b): return [a + b]",
        "def g(a, b): return a + b",
        "def f(a, b: return",
        "def f(a, b): raise ValueError",
        "import os; os._exit(0)",
        "while True: pass",
        "def f(a, b): return bytearray(10**10)",
        "",
    ]
    found = verdicts("python", document, texts)
    assert [score for score, _ in found] == [1, 1] + [0] * 11
    assert found[0][1] == ""
    assert found[2][1] == "wrong result"
    assert found[10][1].startswith("cpu limit")
    assert all(note for score, note in found if score == 0)


def test_python_tells_true_from_one_and_lists_from_tuples() -> None:
    document = {"entry": "f", "inputs": [[]], "expected": [[True, {"a": 1}]]}
    texts = [
        "def f(): return [True, {'a': 1}]",
        "def f(): return [1, {'a': 1}]",
        "def f(): return [True, {'a': True}]",
        "def f(): return (True, {'a': 1})",
        "def f(): return [True, {'a': 1, 'b': 2}]",
    ]
    assert [score for score, _ in verdicts("python", document, texts)] == [1, 0, 0, 0, 0]


def test_shell() -> None:
    document = {
        "files": TREE,
        "expected": {"stdout": "1\n", "files": {**TREE, "out.txt": "blue\n"}},
    }
    good = "grep -c red notes.txt; echo blue > out.txt"
    texts = [
        good,
        "printf 1; echo blue > out.txt",  # the last line break does not count
        "echo blue > out.txt",
        "grep -c red notes.txt",
        f"{good}; rm docs/plan.md",
        f"{good}; echo >> notes.txt",
        f"{good}; echo x > more.txt",
        f"{good}; ln -s out.txt link",
        f"{good}; exit 3",  # judged by what is there, not by the code
        "((",
    ]
    found = verdicts("shell", document, texts)
    assert [score for score, _ in found] == [1, 1, 0, 0, 0, 0, 0, 0, 1, 0]


def test_sql_rows_in_any_order_or_in_order() -> None:
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "expected": {"rows": [["tim", 3], ["ann", 3], ["zoe", 5]]},
    }
    texts = [
        "SELECT name, age FROM pets",
        "SELECT name, age FROM pets ORDER BY age, name DESC",
        "SELECT name, age * 1.0 FROM pets",
        "SELECT name, age FROM pets WHERE age < 5",
        "SELECT name, age FROM pets UNION ALL SELECT 'tim', 3",
        "SELECT age, name FROM pets",
        "SELECT nme FROM pets",
        "",
    ]
    assert [s for s, _ in verdicts("sql", document, texts)] == [1, 1, 1, 0, 0, 0, 0, 0]
    document["ordered"] = True
    assert [s for s, _ in verdicts("sql", document, texts)] == [0, 1, 0, 0, 0, 0, 0, 0]


def test_sql_rows_of_mixed_types_are_compared_as_a_multiset() -> None:
    document = {
        "schema": "CREATE TABLE t(a);INSERT INTO t VALUES(1),(2.0),(NULL),('x'),(x'ab');",
        "expected": {"rows": [[2], ["x"], [1.0], [None], [{"__bytes__": "ab"}]]},
    }
    assert verdicts("sql", document, ["SELECT a FROM t", "SELECT a FROM t LIMIT 4"]) == [
        (1.0, ""),
        (0.0, "wrong result"),
    ]
    pairs = {
        "schema": "CREATE TABLE t(a, b);INSERT INTO t VALUES(1.0,'a'),(1,'b');",
        "expected": {"rows": [[1, "a"], [1, "b"]]},
    }
    assert verdicts("sql", pairs, ["SELECT a, b FROM t"])[0][0] == 1


def test_sql_changes_are_judged_by_a_probe() -> None:
    document = {
        "schema": SCHEMA,
        "probe": "SELECT name, age FROM pets ORDER BY name",
        "expected": {"rows": [], "probe": [["ann", 3], ["tim", 4], ["zoe", 5]]},
    }
    texts = [
        "UPDATE pets SET age = 4 WHERE name = 'tim'",
        "UPDATE pets SET age = 4",
        "SELECT 1",
        "DROP TABLE pets",  # the probe itself fails then
        "UPDATE pets SET age = 4 WHERE name = 'tim'; SELECT 1",
    ]
    assert [score for score, _ in verdicts("sql", document, texts)] == [1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("kind", "document", "says"),
    [
        ("python", {"inputs": [], "expected": []}, "has no entry of type str"),
        ("python", {"entry": "f", "inputs": [[1]], "expected": []}, "one expected value for each"),
        ("shell", {"files": TREE, "expected": {"stdout": ""}}, "has no expected.files"),
        ("shell", {"files": {"../a": ""}, "expected": {"stdout": "", "files": {}}}, "no program"),
        ("sql", {"schema": "", "expected": {}}, "has no expected.rows of type list"),
        (
            "sql",
            {"schema": "", "probe": "SELECT 1", "expected": {"rows": []}},
            "has no expected.probe of type list",
        ),
    ],
)
def test_faulty_documents(kind: str, document: dict[str, Any], says: str) -> None:
    assert says in (EXECUTIONS[kind].fault(document) or "")


def test_every_other_status_scores_zero_and_says_why() -> None:
    for status in Status:
        if status is not Status.FINISHED:
            outcome = Outcome(status, None, "so it was", 0.0)
            document = {"entry": "f", "inputs": [], "expected": []}
            assert judge(EXECUTIONS["python"], document, outcome) == (0.0, f"{status}: so it was")


def test_same() -> None:
    equal: list[tuple[Any, Any]] = [(1, 1.0), ("a", "a"), ([1, [2]], [1, [2]]), (None, None)]
    unequal: list[tuple[Any, Any]] = [
        (True, 1),
        (0, False),
        ("1", 1),
        ([1], 1),
        (None, 0),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"b": 1}),
    ]
    assert all(same(*pair) for pair in equal)
    assert not any(same(*pair) for pair in unequal)
