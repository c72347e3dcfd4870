"""Questions kept beside the journal: short, and whatever they hold."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from cqd_hub.evaluation.skill import Skill
from cqd_hub.run.questions import read_questions, write_questions


def skill(questions: dict[str, str]) -> Skill:
    samples: list[Any] = [SimpleNamespace(id=name) for name in questions]
    made = SimpleNamespace(
        samples={"test": samples, "validation": [SimpleNamespace(id="never asked for")]},
        question=lambda sample: questions[sample.id],
    )
    return cast(Skill, made)


def test_kept_as_they_are_but_short(tmp_path: Path) -> None:
    asked = {"1": "  indented\n\tlines", "2": "half \ud800 <b>", "3": "x" * 10_000}
    write_questions(tmp_path, {"os": skill(asked)})
    kept = read_questions(tmp_path)["os"]
    assert kept["1"] == asked["1"]
    assert kept["2"] == asked["2"]
    assert kept["3"] == "x" * 599 + "…"


def test_a_run_without_them_has_none(tmp_path: Path) -> None:
    assert read_questions(tmp_path) == {}
    for content in ("{", "[]", '{"os": 3}'):
        (tmp_path / "questions.json").write_text(content)
        assert read_questions(tmp_path) == {}
