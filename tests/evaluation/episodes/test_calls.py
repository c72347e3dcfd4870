from __future__ import annotations

import json

import pytest

from cqd_hub.evaluation.episodes.calls import parse_calls

ONE = '{"name": "run", "arguments": {"query": "SELECT 1"}}'
LLAMA = '{"type": "function", "name": "run", "parameters": {"query": "SELECT 1"}}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"<tool_call>\n{ONE}\n</tool_call>", ""),
        (f"I look.\n<tool_call>{ONE}</tool_call>", "I look."),
        (f"I look. <tool_call>{ONE}", "I look."),
        (f"<|python_tag|>{ONE}", ""),
        (f"First, <|python_tag|>{LLAMA}", "First,"),
        (ONE, ""),
        (f"\n {LLAMA} \n", ""),
        (f"[{ONE}]", ""),
        (json.dumps({"function": json.loads(ONE), "id": "x"}), ""),
        (json.dumps({"name": "run", "arguments": '{"query": "SELECT 1"}'}), ""),
    ],
)
def test_one_call(text: str, said: str) -> None:
    content, (call,) = parse_calls(text, 2)
    assert content == said
    assert (call.name, call.arguments) == ("run", {"query": "SELECT 1"})
    assert call.id == "call00200"


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>{ONE}</tool_call>\n<tool_call>{ONE}</tool_call>",
        f"<|python_tag|>{ONE}; {ONE}",
        f"{ONE}\n{ONE}",
        f"[{ONE}, {ONE}]",
        f"<tool_call>{ONE}</tool_call><tool_call>not json</tool_call><tool_call>{ONE}</tool_call>",
    ],
)
def test_several_calls(text: str) -> None:
    said, calls = parse_calls(text, 0)
    assert said == ""
    assert [call.id for call in calls] == ["call00000", "call00001"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SELECT 1",
        f"I would write {ONE}",
        f"{ONE} and so on",
        "<tool_call>run()</tool_call>",
        '<tool_call>{"name": "run"}</tool_call>',
        '{"name": "run", "arguments": [1]}',
        '{"name": "run", "arguments": "no json"}',
        '{"name": 3, "arguments": {}}',
        '{"query": "SELECT 1"}',
        "[" * 100_000,
        '{"a":' * 50_000,
        "[]",
        f"[{ONE}, 3]",
        ONE + " " * (1 << 18),
    ],
)
def test_anything_else_is_text(text: str) -> None:
    assert parse_calls(text, 0) == (text, ())
