from __future__ import annotations

import ast

import pytest

from cqd_hub.evaluation.environments.evalplus.sanitise import (
    MOST_TEXT,
    before_margin,
    reachable_program,
)

CODE = "import math\n\ndef half(x):\n    return x / 2\n\ndef f(x):\n    return half(math.floor(x))"
KEPT = "import math\ndef half(x):\n    return x / 2\ndef f(x):\n    return half(math.floor(x))"


@pytest.mark.parametrize(
    "answer",
    [
        CODE,
        f"```python\n{CODE}\n```",
        f"Sure, here's the code (with a helper:\n\n```python\n{CODE}\n```\n\nIt's fast: f(3).",
        f'\n{CODE}\n```\nThis is """good""".',
        f"Here it is:\n{CODE}\n\nThat should work, I think.",
        f"{CODE}\n\nprint(f(3))\nassert f(4) == 2\nunused = 3\ndef other(): return f(1)",
        f"I'd do\n\n{CODE}\n\nif __name__ == '__main__':\n    print(f(int(input())))",
        f"{CODE}\n\ndef broken(:\n    return",
        f"{CODE}\n\nclass Cut:\n    def method(self, long_name,",
        f"```\nsome shell output here\n```\n```py\n{CODE}\n```\n```python\nf(3)\nf(4)\n```",
        f"```python\n{CODE}\n```".replace("\n", "\r\n"),
    ],
)
def test_finds_the_program(answer: str) -> None:
    assert reachable_program(answer, "f") == KEPT


def test_the_longest_program_counts() -> None:
    short, long = "def f(x):\n    return 1", "def f(x):\n    y = x\n    return y"
    for first, second in ((short, long), (long, short)):
        answer = f"```python\n{first}\n```\nor\n```python\n{second}\n```"
        assert reachable_program(answer, "f") == long


@pytest.mark.parametrize(
    ("code", "kept"),
    [
        (
            "LIMIT = 3\nLOST = 4\ndef f(x): return x < LIMIT",
            "LIMIT = 3\ndef f(x): return x < LIMIT",
        ),
        ("a, b = 1, 2\nf = lambda x: x + b", "a, b = 1, 2\nf = lambda x: x + b"),
        (
            "from functools import cache\n@cache\ndef f(n):\n    return n\nf(3)",
            "from functools import cache\n@cache\ndef f(n):\n    return n",
        ),
        (
            "class Node:\n    pass\ndef f(): return Node()",
            "class Node:\n    pass\ndef f(): return Node()",
        ),
        ("def f(): return 1\ndef f(): return 2", "def f(): return 1\ndef f(): return 2"),
        ("table = {}\ntable[1] = f\ndef f(): return table", "table = {}\ndef f(): return table"),
        ("async def f():\n    yield 1", "async def f():\n    yield 1"),
        ('def f():\n    """\n    ```\n    f()\n    ```\n    """\n    return 1',) * 2,
    ],
)
def test_keeps_imports_and_what_the_function_reaches(code: str, kept: str) -> None:
    assert reachable_program(code, "f") == kept


@pytest.mark.parametrize(
    "answer",
    ["", "f", "I would use `f(x)`.", "def g(x):\n    return f(x)", "class A:\n    def f(self): 1",
     "def f(x:\n", "f == 3", "def ff(): pass", "\0def f(): pass", "def f(): return '\ud800'"],
)  # fmt: skip
def test_no_program(answer: str) -> None:
    assert reachable_program(answer, "f") == ""


def test_a_body_cut_short_is_kept_as_far_as_it_goes() -> None:
    answer = "def f(x):\n    y = x + 1\n    return y\n    z = (y +"
    assert reachable_program(answer, "f") == "def f(x):\n    y = x + 1\n    return y"


@pytest.mark.parametrize("rule", [reachable_program, before_margin])
@pytest.mark.parametrize(
    "piece",
    ["(", "[", "-", "not ", "lambda:", "f.", "1+", "if f:\n", "try:\n x\n", "def f():\n", "@f\n",
     "def f():\n    return 1\n)\n", "x\n", "'''", '"', "\\\n", "```\n", "def f(\n", "f = (\n",
     "f'{", "def f(", "    return ", "\n", "f=" , "try:\n def f():\n  x\n"],
)  # fmt: skip
@pytest.mark.parametrize(
    "frame", ["{}", "def f():\n    return 1\n{}", "{}\ndef f():\n    return 1"]
)
def test_hostile_text_is_answered_within_the_budget(rule, piece, frame) -> None:  # type: ignore[no-untyped-def]
    text = frame.format(piece * (MOST_TEXT // len(piece)))
    program = rule(text, "f")
    assert len(program) <= 2 * len(text)


def test_nested_blocks_cut_short() -> None:
    text = "def f():\n" + "".join(" " * depth + "if x:\n" for depth in range(1, 90))
    assert reachable_program(text, "f") == ""


def test_the_older_rule() -> None:
    answer = f"\n{CODE}\n\nassert f(4) == 2\nprint(f(3))\n```\nExplanation"
    program = before_margin(answer, "f")
    assert "assert" not in program
    assert "print" not in program
    names = {node.name for node in ast.parse(program).body if isinstance(node, ast.FunctionDef)}
    assert names == {"half", "f"}
    assert before_margin("```python" + answer, "f") == program


def test_the_older_rule_asks_for_four_blanks_before_return() -> None:
    assert before_margin("def f(x):\n  return x", "f") == ""
    assert (
        before_margin("def f(x):\n   y = x\n    return y", "f")
        == "def f(x):\n    y = x\n    return y"
    )


def test_the_older_rule_drops_functions_that_do_not_parse() -> None:
    answer = "def f(x):\n    return g(x)\n\ndef g(x):\n    return x\n\ndef h(x):\n    return ((x"
    program = before_margin(answer, "f")
    assert "def g" in program
    assert "def h" not in program
