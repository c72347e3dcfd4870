"""The quickstart's data: what is committed, what it is worth, and where it comes from."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from cqd_hub.assets import folder

QUICKSTART = folder("evals") / "quickstart"
SKILLS = ("coding", "os", "db")
SIZES = {"optimisation": 210, "validation": 201, "test": 402}


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    sys.path.insert(0, str(QUICKSTART))
    try:
        import generate as module
    finally:
        sys.path.remove(str(QUICKSTART))
    return module


def committed(skill: str, split: str) -> list[dict]:
    ending = ".jsonl.gz" if split == "training" else ".jsonl"
    data = (QUICKSTART / "data" / skill / f"{split}{ending}").read_bytes()
    lines = gzip.decompress(data) if split == "training" else data
    return [json.loads(line) for line in lines.splitlines()]


@pytest.mark.slow
def test_committed_files_are_what_the_generator_makes(generate: ModuleType, tmp_path: Path) -> None:
    generate.generate(tmp_path, seed=0)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.jsonl*"))
    kept = QUICKSTART / "data"
    assert made == sorted(path.relative_to(kept) for path in kept.rglob("*.jsonl*"))
    for path in made:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(tmp_path / path, "rb") as new, opened(kept / path, "rb") as old:
            assert new.read() == old.read(), path


def test_another_seed_draws_other_items_into_the_same_splits(generate: ModuleType) -> None:
    for seed in (0, 1):
        rows = generate.skill_records("db", "validation", seed=seed)
        assert {generate.split_of(row["answer"]) for row in rows} == {"validation"}
    answers = {row["answer"] for row in generate.skill_records("db", "validation", seed=1)}
    assert answers != {row["answer"] for row in committed("db", "validation")}


@pytest.mark.parametrize("skill", SKILLS)
def test_splits_share_no_gold_answer_and_no_prompt(skill: str) -> None:
    splits = {split: committed(skill, split) for split in ("training", *SIZES)}
    for field in ("answer", "prompt"):
        seen: Counter[str] = Counter()
        for rows in splits.values():
            seen.update({row[field] for row in rows})
        assert max(seen.values()) == 1


@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.parametrize("split", SIZES)
def test_items_are_many_distinct_and_of_balanced_levels(skill: str, split: str) -> None:
    rows = committed(skill, split)
    assert len(rows) == len({row["answer"] for row in rows}) == SIZES[split]
    assert len({row["id"] for row in rows}) == len(rows)
    assert set(Counter(row["level"] for row in rows).values()) == {SIZES[split] // 3}


@pytest.mark.parametrize("skill", SKILLS)
def test_a_prompt_asks_for_one_answer_and_meets_it_without_a_space(skill: str) -> None:
    answers: dict[str, str] = {}
    for split in ("training", *SIZES):
        for row in committed(skill, split):
            assert answers.setdefault(row["prompt"], row["answer"]) == row["answer"]
            assert row["prompt"].endswith(" ->")
            assert row["answer"] == row["answer"].strip()
            assert "\n" not in row["answer"]


@pytest.mark.parametrize("split", SIZES)
def test_python_golds_pass_and_constants_fail(generate: ModuleType, split: str) -> None:
    rows = committed("coding", split)
    run = generate.coding.run
    assert run([(r["answer"], r["inputs"]) for r in rows]) == [r["expected"] for r in rows]
    for lazy in ("def f(x): return x", "def f(x): return 0", "def f(x): pass"):
        outputs = run([(lazy, row["inputs"]) for row in rows])
        assert not any(o == row["expected"] for o, row in zip(outputs, rows, strict=True)), lazy


def test_shell_golds_pass_and_doing_nothing_fails(generate: ModuleType) -> None:
    for row in committed("os", "optimisation"):
        assert generate.shell.run(row["answer"], row["files"]) == row["expected"]
    for split in SIZES:
        for row in committed("os", split):
            assert row["expected"] != {"stdout": "", "files": row["files"]}


@pytest.mark.parametrize("split", SIZES)
def test_sql_golds_pass_and_doing_nothing_fails(generate: ModuleType, split: str) -> None:
    for row in committed("db", split):
        probe = row.get("probe", "")
        assert generate.sql.run(row["schema"], row["answer"], probe) == row["expected"]
        assert generate.sql.run(row["schema"], "SELECT 1 WHERE 0", probe) != row["expected"]


def test_ordered_sql_has_one_order(generate: ModuleType) -> None:
    """No two rows tie in what a question orders by, so every correct query agrees."""
    for row in committed("db", "optimisation"):
        if row["ordered"]:
            shuffled = row["schema"].replace("),(", ");INSERT INTO {} VALUES(")
            tables = [part.split(" VALUES")[0] for part in row["schema"].split("INSERT INTO ")[1:]]
            parts = shuffled.split("CREATE TABLE ")[1:]
            schema = "".join(
                "CREATE TABLE " + part.replace("{}", table)
                for part, table in zip(parts, tables, strict=True)
            )
            statements = [s for s in schema.split(";") if s]
            creates = [s for s in statements if s.startswith("CREATE")]
            inserts = [s for s in statements if s.startswith("INSERT")][::-1]
            reversed_rows = ";".join([*creates, *inserts]) + ";"
            assert generate.sql.run(reversed_rows, row["answer"], "") == row["expected"]


def test_held_out_stories_are_not_in_the_training_text() -> None:
    held = {row["text"] for row in committed("general", "heldout")}
    assert len(held) == 300
    assert not held & {row["text"] for row in committed("general", "training")}


def test_paraphrases_expand_every_alternative(generate: ModuleType) -> None:
    assert generate.paraphrases("(a|b) x (c|d)") == ["a x c", "a x d", "b x c", "b x d"]
