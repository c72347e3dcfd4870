"""The data of the agents' quickstart: what is committed, and where it comes from."""

from __future__ import annotations

import pytest

from .agents import SKILLS, SPLITS, committed, generate, problems


@pytest.mark.parametrize("skill", SKILLS)
def test_committed_problems_are_what_the_generator_makes(skill: str) -> None:
    made = [problem.record for split in SPLITS for _, problem in problems(skill, split)]
    assert made == committed(skill, "problems.jsonl")


@pytest.mark.parametrize("skill", ["coding", pytest.param("os", marks=pytest.mark.slow), "db"])
def test_committed_dialogues_are_what_the_generator_makes(skill: str) -> None:
    made = [
        row | {"level": level}
        for level, problem in generate().problems(skill, "training", seed=0)
        for row in problem.rows()
    ]
    assert made == committed(skill, "training.jsonl.gz")


@pytest.mark.parametrize("skill", SKILLS)
def test_no_question_of_one_split_is_in_another(skill: str) -> None:
    """Nor in the training dialogues, which open with the question."""
    seen: dict[str, str] = {}
    for split in SPLITS:
        for _, problem in problems(skill, split):
            assert seen.setdefault(problem.rows()[0]["prompt"], split) == split
    assert not seen.keys() & {row["prompt"] for row in committed(skill, "training.jsonl.gz")}


@pytest.mark.parametrize("skill", SKILLS)
def test_dialogues_have_up_to_three_replies_and_levels_equal_shares(skill: str) -> None:
    made = problems(skill, "test")
    levels = [level for level, _ in made]
    assert [levels.count(level) for level in (1, 2, 3)] == [len(made) // 3] * 3
    replies = {
        level: {len(problem.turns) + 1 for at, problem in made if at == level}
        for level in (1, 2, 3)
    }
    expected = {1: {2}, 2: {2}, 3: {3}}
    assert replies == ({1: {1}, 2: {1}, 3: {1, 2}} if skill == "coding" else expected)
