from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cqd_hub.errors import UserError
from cqd_hub.evaluation.environments.evalplus import EvalPlus
from cqd_hub.evaluation.episodes import COMPLETED, CONTEXT_FULL
from cqd_hub.files import cache_folder

from .common import BY_ENTRY, DOUBLE, TASKS, Ground, canonical, write

Open = Callable[..., Ground]
GOOD = "def double(x):\n    return x + x"


def fenced(code: str) -> str:
    return f"Here:\n\n```python\n{code}\n```\n"


def test_canonical_solutions_pass(ground: Open) -> None:
    opened = ground()
    for entry, task in BY_ENTRY.items():
        assert opened.verdict(entry, fenced(canonical(task))) == (1.0, COMPLETED, ""), entry


@pytest.mark.parametrize(
    ("entry", "code", "score"),
    [
        ("similar_elements", "similar_elements = lambda a, b: iter({*a} & {*b})", 1),
        ("check_str", "def check_str(s):\n    return s[:1] in tuple('aeiou')", 1),
        ("check_str", "def check_str(s):\n    return 1", 0),
        ("are_equivalent", "def are_equivalent(a, b):\n    return 'who knows'", 1),
        ("sum_div", "def sum_div(n):\n    return 0", 1),
        ("sum_div", "def sum_div(n):\n    return 6", 0),
        ("third", "def third(x):\n    return x * (1 / 3)", 1),
        ("third", "def third(x):\n    return round(x / 3, 4)", 0),
        ("mean", "def mean(xs):\n    return sum(xs) / len(xs) + 0.009", 1),
        ("find_zero", "def find_zero(xs):\n    return {2: -0.5, 4: 3.0}[len(xs)]", 1),
        ("double", "def double(x):\n    return 2 * x if isinstance(x, int) else x", 0),
    ],
)
def test_answers(ground: Open, entry: str, code: str, score: float) -> None:
    assert ground().verdict(entry, fenced(code)).score == score


@pytest.mark.parametrize(
    ("answer", "status", "note"),
    [
        ("", "nothing defined", "defines no double"),
        ("I cannot do that.", "nothing defined", "defines no double"),
        ("def double(x)\n    return", "nothing defined", "defines no double"),
        ("double = 3", COMPLETED, "base input 0: TypeError"),
        ("import nonesuch\ndef double(x): return x", COMPLETED, "ModuleNotFoundError"),
        ("def double(x):\n    return 2", COMPLETED, "base input 1: wrong value"),
        ("def double(x):\n    return x * 2 if x != 'ab' else x", COMPLETED, "plus input 1: wrong"),
        ("def double(x):\n    while x: x\n    return x", COMPLETED, "base input 0: TimeLimit"),
        (
            "def wait():\n    while True: pass\n    return 1\n\ndef double(x):\n"
            "    while x:\n        try: wait()\n        except BaseException: pass\n"
            "    return 1",
            COMPLETED,
            "without a proper reply",
        ),
        ("def double(x):\n    return [x] * 10**10", COMPLETED, "memory limit"),
        ("def double(x):\n    return 'x' * 10**6", COMPLETED, "output limit"),
        ("def double(x):\n    return x.bit_count() and object()", COMPLETED, "type object cannot"),
    ],
)
def test_wrong_answers_say_why(ground: Open, answer: str, status: str, note: str) -> None:
    verdict = ground(dialect="cycleqd" if "while" in answer else "evalplus").verdict(
        "double", answer
    )
    assert (verdict.score, verdict.status) == (0.0, status)
    assert note in verdict.note
    assert verdict.note.isprintable()


def test_what_an_answer_prints_is_nothing(ground: Open) -> None:
    code = "def double(x):\n    print('{\"value\": []}' * 10**5)\n    return 2 * x"
    assert ground().verdict("double", fenced(code)).score == 1


def test_base_tests_alone(ground: Open) -> None:
    code = "def double(x):\n    return {1: 2, 0: 0, -4: -8}[x]"
    assert ground(tests="base").verdict("double", code).score == 1
    assert ground(tests="plus").verdict("double", code).score == 0


def test_rounds_show_the_visible_assertion_only(ground: Open) -> None:
    opened = ground(rounds=3)
    episode = opened.begin("double")
    assert opened.environment.rounds == 3
    assert "Give the whole program" in opened.seen(episode, "def double(x):\n    return 3 * x")
    seen = opened.seen(episode, "def double(x):\n    return 3")
    assert "assert double(1) == 2  # left: 3" in seen
    assert "plus" not in seen
    # Passing what is visible ends the episode, though hidden tests fail and a round is left.
    verdict = opened.step(episode, "def double(x):\n    return 2")
    assert verdict == (0.0, COMPLETED, "base input 1: wrong value")


def test_feedback_of_programs_that_do_not_run(ground: Open) -> None:
    opened = ground(rounds=9, dialect="cycleqd", prompts="none")
    episode = opened.begin("double")
    assert "the answer defines no double" in opened.seen(episode, "no idea")
    assert "raises ZeroDivisionError" in opened.seen(episode, "def double(x):\n    return 1 / 0")
    assert "CPU limit" in opened.seen(episode, "def double(x):\n    while 1: x\n    return x")
    assert "SyntaxError" in opened.seen(episode, "def double(x):\n    return )")
    seen = opened.seen(episode, "def double(x):\n    return '\\x1b[2J\\n'")
    assert seen.strip().isprintable()
    assert "left: '\\x1b[2J\\n'" in seen
    assert opened.step(episode, "def double(x):\n    return 2 * x").score == 1  # type: ignore[union-attr]


def test_the_last_round_is_judged_by_all(ground: Open) -> None:
    opened = ground(rounds=2)
    episode = opened.begin("double")
    opened.seen(episode, "def double(x):\n    return 0")
    assert opened.step(episode, "def double(x):\n    return 1") == (
        0.0,
        COMPLETED,
        "base input 0: wrong value",
    )


def test_a_full_context_leaves_the_last_program(ground: Open) -> None:
    opened = ground(rounds=3)
    run = opened.loop.run_until_complete
    assert run(opened.begin("double").end(CONTEXT_FULL)) == (0.0, CONTEXT_FULL, "")
    episode = opened.begin("double")
    opened.seen(episode, "def double(x):\n    return 0")
    assert run(episode.end(CONTEXT_FULL)) == (0.0, CONTEXT_FULL, "base input 0: wrong value")


def test_the_head_of_the_function_is_continued_where_only_the_problem_is_shown(
    ground: Open,
) -> None:
    body = BY_ENTRY["find_zero"]["canonical_solution"]
    assert ground(prompts="none").verdict("find_zero", body).score == 1
    assert ground().verdict("find_zero", body).status == "nothing defined"


def test_prompts(ground: Open, tmp_path: Path) -> None:
    task = TASKS[0]
    (own,) = ground().begin("double").opening
    assert task["prompt"].strip() in own.content
    (alone,) = ground(prompts="none").begin("double").opening
    assert alone.content == task["prompt"]
    (layout,) = ground(dialect="cycleqd").begin("double").opening
    assert "\n\n@@ Instruction:\nOne of our own: double." in layout.content
    assert layout.content.endswith("assert double(1) == 2\n```\n\n@@ Response:\n")
    given = tmp_path / "prompts.yaml"
    given.write_text("system: Be {brief}.\nuser: 'Do: {prompt}{entry}'\n")
    opened = ground(prompts=str(given), faithful=True)
    system, user = opened.begin("double").opening
    assert (system.role, system.content) == ("system", "Be {brief}.")
    assert user.content == f"Do: {task['prompt'].strip()}double"
    assert "/given-prompts-" in opened.environment.kind
    given.write_text("system: Be {brief}.\nuser: 'Please do: {prompt}{entry}'\n")
    assert ground(prompts=str(given)).environment.kind != opened.environment.kind
    given.write_text("user: 'Do: {prompt}{entry}'\nsystem: Be {brief}.\n")  # the same texts
    assert ground(prompts=str(given)).environment.kind == opened.environment.kind


def test_a_problem_with_braces_stays_as_it_is(ground: Open, tmp_path: Path) -> None:
    task = {**DOUBLE, "prompt": '"""\nUse {entry} and {task}.\nassert double(1) == 2\n"""\n'}
    opened = ground(write(tmp_path / "odd.jsonl", [task]))
    assert "Use {entry} and {task}." in opened.begin("double").opening[0].content


def test_the_kind_names_everything(ground: Open) -> None:
    environment = ground(dialect="cycleqd", tests="base").environment
    assert environment.kind.startswith("cycleqd/base/own-prompts/")
    assert environment.kind.split("/")[-1] in environment.guarantees
    assert environment.repeatable


def test_expected_outputs_are_computed_once(ground: Open, tmp_path: Path) -> None:
    marker = f"# {tmp_path}"
    tasks = [
        {**DOUBLE, "task_id": f"Mbpp/{number}", "canonical_solution": f"{GOOD}  {marker} {number}"}
        for number in range(9100, 9110)
    ]
    data = write(tmp_path / "fresh.jsonl", tasks)
    stored = cache_folder() / "evalplus"
    before = set(stored.rglob("*.json"))
    assert ground(data).notes == ["running 20 canonical solutions once, for their expected outputs"]
    made = {*stored.rglob("*.json")} - before
    assert len(made) == 20
    times = {path: path.stat().st_mtime_ns for path in made}
    next(iter(made)).unlink()  # as if the first time had been cut short
    assert ground(data).notes == []
    changed = [path for path in made if path.stat().st_mtime_ns != times[path]]
    assert len(changed) == 1


def test_a_canonical_solution_that_fails_is_named(ground: Open, tmp_path: Path) -> None:
    bad = {**DOUBLE, "plus_input": [], "canonical_solution": "def double(x):\n    return 2 / x\n"}
    with pytest.raises(UserError) as caught:
        ground(write(tmp_path / "bad.jsonl", [bad]))
    assert "Mbpp/9001: its base tests cannot be judged" in str(caught.value)
    assert "input 1: ZeroDivisionError" in str(caught.value)


def test_a_known_fault_is_left_out_or_played_without_its_inputs(
    ground: Open, tmp_path: Path
) -> None:
    known = {
        **DOUBLE,
        "task_id": "Mbpp/255",
        "canonical_solution": "def double(x):\n    return 2 * x if x != 'ab' else object()\n",
    }
    data = write(tmp_path / "known.jsonl", [known])
    opened = ground(data)
    assert "memory limit" in opened.samples["double"].fault
    kept = ground(data, faulty="keep")
    verdict = kept.verdict("double", GOOD)
    assert verdict == (1.0, COMPLETED, "1 inputs without an expected output were left out")
    assert kept.verdict("double", "def double(x):\n    return 2").score == 0
    assert ground(data, tests="base").samples["double"].fault == ""


def test_own_splits(ground: Open, tmp_path: Path) -> None:
    for split, entry in (
        ("optimisation", "double"),
        ("validation", "third"),
        ("test", "mean"),
    ):
        write(tmp_path / f"{split}.jsonl", [BY_ENTRY[entry]])
    samples = ground(tmp_path).environment.samples()
    assert {split: [sample.id for sample in found] for split, found in samples.items()} == {
        "optimisation": ["Mbpp/9001"],
        "validation": ["Mbpp/9002"],
        "test": ["Mbpp/9003"],
    }
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"test\.jsonl: cannot be read"):
        ground(tmp_path)


def test_a_folder_gives_the_file_without_extreme_inputs(ground: Open, tmp_path: Path) -> None:
    write(tmp_path / "MbppPlus.jsonl", TASKS)
    write(tmp_path / "MbppPlus-NoExtreme.jsonl", TASKS[:1])
    assert list(ground(tmp_path).environment.samples()) == ["test"]
    assert len(ground(tmp_path).environment.samples()["test"]) == 1


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "no data are named"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"data": "tasks.jsonl", "faithful": True}, "faithful: true, but prompts: own"),
        ({"data": "tasks.jsonl", "prompts": "texts.yaml"}, "texts.yaml"),
        ({"data": "tasks.jsonl", "prompts": "wrong.yaml"}, "is no file of prompts"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, str], what: str) -> None:
    write(tmp_path / "tasks.jsonl", TASKS[:1])
    (tmp_path / "wrong.yaml").write_text(json.dumps({"user": "no place for a problem"}))
    with pytest.raises(UserError) as caught:
        EvalPlus(EvalPlus.Options(**options), tmp_path)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
