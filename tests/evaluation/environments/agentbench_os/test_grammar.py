"""Reading acts, with replies as models write them."""

from __future__ import annotations

import pytest

from cqd_hub.evaluation.environments.agentbench_os.grammar import (
    Bash,
    Commit,
    parse_call,
    parse_text,
)


@pytest.mark.parametrize(
    ("reply", "action"),
    [
        ("Think: x\n\nAct: bash\n\n```bash\nls\n```", Bash("ls")),
        ("Act: bash\n```bash\na\nb\n```\nand\n```bash\nc\n```", Bash("a\nb\n\nc")),
        ("Act: BASH now", Bash("")),
        ("Act: bash\n```sh\nls\n```", Bash("")),
        ("Act:\n\nbash\n```bash\nls\n```", Bash("ls")),
        ("```bash\nls\n```\nAct: bash", Bash("ls")),
        ("Act: bash\n```bash\nls```", Bash("")),
        ("Act: finish", Commit(None)),
        ("Act: Finished, I think (really)", Commit(None)),
        ("Act: answer(220)", Commit("220")),
        ("Act: Answer ( f(x) = (2) ) .", Commit(" f(x) = (2) ")),
        ("Act: answer()", Commit("")),
        ("Act: answer)(", Commit("")),
        ("Act: answer 220", None),
        ("Act: answer(220", None),
        ("Act: finish\nAct: answer 220", Commit(None)),
        ("Act: answer(1)\nAct: answer(2)", Commit("2")),
        ("Act: bash\n```bash\nls\n```\nThe output is 3.\nAct: answer(3)", Commit("3")),
        ("Act: answer(3)\nAct: think about it", Commit("3")),
        ("Act: answer(a\nb)", None),
        ("I Act: finish", Commit(None)),
        ("Action: finish", None),
        ("act: finish", None),
        ("Act:", None),
        ("", None),
    ],
)
def test_text(reply: str, action: object) -> None:
    assert parse_text(reply) == action


@pytest.mark.parametrize(
    ("name", "arguments", "action"),
    [
        ("bash_action", {"script": "ls"}, Bash("ls")),
        ("bash_action", {"command": "ls", "script": "pwd"}, Bash("ls")),
        ("bash_action", {"script": ["ls"]}, Bash("")),
        ("bash_action", {}, None),
        ("answer_action", {"answer": "3"}, Commit("3")),
        ("answer_action", {"answer": 3}, Commit("3")),
        ("answer_action", {}, None),
        ("finish_action", {"thought": "done"}, Commit("done")),
        ("finish_action", {}, Commit(None)),
        ("python_action", {"script": "1"}, None),
    ],
)
def test_calls(name: str, arguments: dict[str, object], action: object) -> None:
    assert parse_call(name, arguments) == action
