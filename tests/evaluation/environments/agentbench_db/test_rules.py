"""Grammar, judge, faults and prompts, without an engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cqd_hub.errors import UserError
from cqd_hub.evaluation.databases import Table
from cqd_hub.evaluation.environments.agentbench_db import DBBench
from cqd_hub.evaluation.environments.agentbench_db.data import Problem
from cqd_hub.evaluation.environments.agentbench_db.faults import fault_of
from cqd_hub.evaluation.environments.agentbench_db.grammar import Reading, read
from cqd_hub.evaluation.environments.agentbench_db.judge import right_answer, right_answers
from cqd_hub.evaluation.environments.agentbench_db.prompts import read_prompts
from cqd_hub.evaluation.episodes import Message

SQL = "```sql\nSELECT 1\n```"
PROBLEM = Problem("other", "Who?", "A table t.", "It rains.", (), ("x",), (), "")


@pytest.mark.parametrize(
    ("reply", "reading"),
    [
        (f"Action: Operation\n{SQL}", Reading(True, "SELECT 1", None)),
        ("Action: Operation\n```sql\nSELECT\n1;\n```", Reading(True, "SELECT 1;", None)),
        (f"Action: Operation\n{SQL}\n```sql\nDROP\n```", Reading(True, "SELECT 1", None)),
        (f"Action: Operation \n{SQL}", Reading(False, "SELECT 1", None)),
        (f"Action: operation\n{SQL}", Reading(False, "SELECT 1", None)),
        (f"Action: Operation {SQL}", Reading(False, "SELECT 1", None)),
        ("Action: Operation", Reading(False, None, None)),
        ("Action: Operation\n```SQL\nSELECT 1\n```", Reading(True, None, None)),
        ("Action: Operation\n```sql\nSELECT 1```", Reading(True, None, None)),
        (f"Action: Answer\nAction: Operation\n{SQL}", Reading(False, "SELECT 1", None)),
        ("Action: Answer\nFinal Answer: [1]", Reading(False, None, " [1]")),
        ("Final Answer: [1]", Reading(False, None, None)),
        ("x\nFinal Answer: a\nFinal Answer: b", Reading(False, None, " a")),
        ("x\nFinal Answer:", Reading(False, None, "")),
        ("", Reading(False, None, None)),
        ("Action: " * 1_000_000, Reading(False, None, None)),
        ("```sql\n " * 1_000_000, Reading(False, None, None)),
    ],
)  # fmt: skip
def test_replies_are_read_to_the_letter(reply: str, reading: Reading) -> None:
    assert read(reply) == reading


@pytest.mark.parametrize(
    ("answer", "label", "right"),
    [
        (' ["a"]', ["a"], True),
        (' ["a", "b"]', ["b", "a"], True),
        (' ["a", "a", "b"]', ["b", "a"], True),
        (' ["1"]', ["1.0"], True),
        (" [1]", ["1.0"], True),
        (" 7", ["7.0"], True),
        (" a", ["a"], False),  # the space before it stays
        ("a", ["a"], True),
        ("", ["a"], False),
        (" []", ["a"], False),
        (' ["A"]', ["a"], False),
        (' ["1,000"]', ["1000"], False),
        (" [1, 2]", ["1", "2"], False),  # numbers are not text
        (' ["nan"]', ["nan"], False),
        (' "ab"', ["a", "b"], True),  # text is a list of its letters
        (" [1 + 1]", ["2"], False),
        (" [[]]", ["a", "b"], False),
        (" [[], 1]", ["a", "b"], False),
        (" [__import__('os')]", ["a"], False),
        ("[" * 100_000, ["a"], False),
        ("[" * 5_000, ["a"], False),
        (" [" + "9" * 10_000 + "]", ["1"], False),
        (" [" + "9" * 400 + "]", ["1"], False),
    ],
)
def test_answers_in_text(answer: str, label: list[str], right: bool) -> None:
    assert right_answer(answer, label) is right


@pytest.mark.parametrize(
    ("answers", "label", "right"),
    [
        (["a"], ["a"], True),
        (["2.005"], ["2"], True),
        (["2.02"], ["2"], False),
        (["45%"], ["45"], True),
        (["1,234"], ["1234.0"], True),
        (["none"], ["0"], True),
        (["NULL"], [""], True),
        (["A"], ["a"], False),
        (["1", "2.001"], ["2", "1"], True),
        (["1", "1"], ["1", "2"], False),
        (["1"], ["1", "1"], False),
        (["b", "a", "a"], ["a", "b"], True),
        ("['a', 'b']", ["b", "a"], True),
        ("[('a',), ('b',)]", ["b", "a"], True),
        ("[a, b]", ["b", "a"], True),
        ('["x, y", "z]', ["q"], False),
        ("a", ["a"], True),
        (None, ["0"], True),
        ([], ["a"], False),
        ({"a": 1}, ["a"], False),
        ("[" * 50_000 + "]", ["a"], False),
    ],
)
def test_answers_in_calls(answers: object, label: list[str], right: bool) -> None:
    assert right_answers(answers, label) is right


def test_faults_by_id_position_and_engine() -> None:
    table = (Table("t", ("a",), ()),)

    def fault(engine: str = "mariadb", **more: object) -> str:
        facts = {"name": "x", "position": 0, "count": 60, "modifies": True, **more}
        return fault_of(table, engine=engine, **facts)  # type: ignore[arg-type]

    assert fault() == ""
    assert "answer_md5" in fault(position=225, count=300)
    assert "answer_md5" in fault("sqlite", position=225, count=360)
    assert fault(position=225, count=300, modifies=False) == ""
    assert fault(position=225, count=301) == ""
    assert "1292" in fault(name="afcd12231dc3")
    assert "1292" in fault("sqlite", name="faa8ea11b9f9")


CHECKOUTS = {
    "agentbench-v0.2": (
        "src/server/tasks/dbbench/__init__.py",
        'big_prompt = """\nDo as told.\n"""',
    ),
    "cycleqd": ("tasks/agentbench_db.py", 'db_prompt_template = (\n "\\n"\n "Do as told.\\n"\n)'),
    "agentbench-fc": (
        "src/server/tasks/dbbench/task.py",
        'SYSTEM_PROMPT = """\nDo as told.\n"""\n\nclass Task:\n  def start(self, entry):\n'
        '    text = ""\n'
        '    text += "Evidence -> " + entry["evidence"] + "\\n"\n'
        '    text += "Table -> " + entry["add_description"] + "\\n"\n'
        '    text += "Asked -> " + entry["description"] + "\\n"\n',
    ),
}  # fmt: skip
CONFIG = """
default:
  parameters:
    tools:
      - type: function
        function:
          name: execute_sql
          description: Theirs.
          parameters: {type: object, properties: {query: {type: string}}}
"""


@pytest.mark.parametrize("dialect", CHECKOUTS)
def test_the_original_text_is_read_and_never_run(dialect: str, tmp_path: Path) -> None:
    name, source = CHECKOUTS[dialect]
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_text(f"raise SystemExit('run')\n{source}\n")
    config = tmp_path / "configs/tasks/dbbench.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(CONFIG)
    prompts = read_prompts(str(tmp_path), dialect, Path("/"))
    assert prompts.whose == "upstream"
    assert prompts.text == "\nDo as told.\n"
    if dialect == "agentbench-fc":
        assert [tool.description for tool in prompts.tools] == ["Theirs."]
        assert prompts.calling(PROBLEM) == (
            Message("system", "\nDo as told.\n"),
            Message("user", "Evidence -> It rains.\nTable -> A table t.\nAsked -> Who?\n"),
        )
    else:
        assert prompts.opening(PROBLEM) == (
            Message("user", "\nDo as told.\n"),
            Message("assistant", "Ok."),
            Message("user", "Who?\nA table t."),
        )
    options = DBBench.Options(
        data="x.jsonl", dialect=dialect, engine="mariadb", prompts=str(tmp_path), faithful=True
    )
    kind = DBBench(options, Path("/")).kind
    assert re.fullmatch(f"{dialect}/upstream-prompts-[0-9a-f]{{8}}/mariadb", kind)
    file.write_text(file.read_text().replace("Do as told", "Do as you like"))
    assert DBBench(options, Path("/")).kind != kind


def test_prompts_of_ones_own(tmp_path: Path) -> None:
    assert read_prompts("none", "cycleqd", tmp_path).opening(PROBLEM) == (
        Message("user", "Who?\nA table t."),
    )
    assert read_prompts("none", "agentbench-fc", tmp_path).calling(PROBLEM) == (
        Message("user", "It rains.\nA table t.\nWho?\n"),
    )
    (tmp_path / "mine.txt").write_text("Be quick.")
    mine = read_prompts("mine.txt", "cycleqd", tmp_path)
    assert (mine.whose, mine.text) == ("given", "Be quick.")
    (tmp_path / "mine.txt").write_text("Be slow.")
    other = read_prompts("mine.txt", "cycleqd", tmp_path)
    assert re.fullmatch("given-prompts-[0-9a-f]{8}", other.kind)
    assert other.kind != mine.kind


def test_prompts_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("x = 1")
    (tmp_path / "broken.py").write_text("x = (")
    for prompts, words in (
        ("nowhere", "no such file"),
        (".", "no such file"),
        ("empty.py", "assigns no text to big_prompt"),
        ("broken.py", "is no Python"),
    ):
        with pytest.raises(UserError, match=words):
            read_prompts(prompts, "agentbench-v0.2", tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"engine": "mariadb"}, "original prompts"), ({"prompts": "none"}, "original prompts")],
)
def test_faithful_refuses(options: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        DBBench(DBBench.Options(data="x", faithful=True, **options), Path("/"))


def test_faithful_refuses_sqlite(tmp_path: Path) -> None:
    file = tmp_path / "__init__.py"
    file.write_text(CHECKOUTS["agentbench-v0.2"][1])
    with pytest.raises(UserError, match="MySQL server"):
        DBBench(DBBench.Options(data="x", faithful=True, prompts=str(file)), tmp_path)
