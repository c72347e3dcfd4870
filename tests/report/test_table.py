"""The table's numbers, checked against ones computed by hand."""

from __future__ import annotations

import csv
import json
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from cqd_hub.errors import UserError
from cqd_hub.recipe import Split
from cqd_hub.report import build_report, format_table, headline, results_table
from cqd_hub.run.journal import Individual, Journal, Measurement, Role
from tests.report.runs import make_run, write_manifest


def answers(skill: str, split: Split, scores: list[list[float]]) -> list[Measurement]:
    """Measurements of samples 0, 1, …, each with its repeats."""
    return [
        Measurement(skill, split, str(sample), score, "text", repeat=repeat)
        for sample, repeats in enumerate(scores)
        for repeat, score in enumerate(repeats)
    ]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two experts and one child; ten test samples per skill, few enough to count."""
    recipe = {
        "name": "small",
        "base": "base",
        "experts": {"a": "a", "b": "b"},
        "skills": {"s": {"task": "s"}, "t": {"task": "t"}},
        "search": {"children": 1},
    }
    write_manifest(tmp_path, recipe)
    journal = Journal(tmp_path, create=True)

    def add(number: int, role: Role, name: str, s: list[list[float]], t: list[list[float]]) -> None:
        both: list[Measurement] = []
        for split in ("optimisation", "test"):
            both += answers("s", split, s) + answers("t", split, t)
        lineage = {"parents": [0, 1]} if role == Role.CHILD else {}
        journal.add(Individual(number, role, name, b"g", f"h{number}", lineage=lineage), both)

    one, none = [[1.0]], [[0.0]]
    add(0, Role.EXPERT, "a", 9 * one + 1 * none, 2 * one + 8 * none)  # average 0.55
    add(1, Role.EXPERT, "b", 1 * one + 9 * none, 8 * one + 2 * none)  # average 0.45
    # The last sample of s was repeated: 0, 1, 1, 1, one sample of 0.75.
    add(2, Role.CHILD, "child 2", 9 * one + [[0.0, 1.0, 1.0, 1.0]], 5 * one + 5 * none)
    journal.tell([0, 1, 2])
    journal.close()
    finalists = [
        {"id": 0, "label": "expert a", "group": "expert"},
        {"id": 1, "label": "expert b", "group": "expert"},
        {"id": 2, "label": "best elite for s", "group": "elite"},
        {"id": 2, "label": "best elite", "group": "elite"},
    ]
    results = {"finalists": finalists, "chosen": 2, "chosen_by": "validation average"}
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def test_hand_computed_numbers(small: Path) -> None:
    a, b, child = results_table(small)
    assert [row.label for row in (a, b, child)] == [
        "expert a",
        "expert b",
        "best elite for s, best elite",
    ]
    assert {row.split for row in (a, b, child)} == {"test"}
    assert [row.chosen for row in (a, b, child)] == [False, False, True]

    # Wilson for 9 of 10, with z = 1.959964: centre (9 + z²/2) / (10 + z²).
    z2 = 1.959963985**2
    centre = (9 + z2 / 2) / (10 + z2)
    half = (z2 * 9 * 1 / 10 + z2 * z2 / 4) ** 0.5 / (10 + z2)
    assert a.skills["s"] == pytest.approx((0.9, centre - half, centre + half, 10), abs=1e-6)
    assert a.average.mean == pytest.approx(0.55)
    assert a.average.n == 20
    assert a.average.low < 0.55 < a.average.high

    assert child.skills["s"].mean == pytest.approx(0.975)
    assert child.skills["s"].n == 10, "repeats are one sample"
    assert child.average.mean == pytest.approx((0.975 + 0.5) / 2)

    assert a.difference is None, "a is the best expert"
    assert b.difference is not None
    assert b.difference.mean == pytest.approx(0.45 - 0.55)
    assert child.difference is not None
    assert child.difference.mean == pytest.approx((0.075 + 0.3) / 2)
    # Bonett and Price: two imaginary samples per skill, one won by either side.
    variances = []
    for gains in ([0.75], [1, 1, 1]):
        centre = sum(gains) / 12
        variances.append(((sum(g * g for g in gains) + 2) / 12 - centre**2) / 12)
    half = 1.959963985 * sum(variances) ** 0.5 / 2
    centre = (0.75 + 3) / 12 / 2
    assert child.difference[1:3] == pytest.approx((centre - half, centre + half))


def test_pairs_by_sample_not_by_place(small: Path) -> None:
    # The best expert lacks sample 9 of t; the child lost that one, which must not shift the others.
    database = sqlite3.connect(small / "journal.sqlite")
    database.execute(
        "DELETE FROM measurements WHERE individual=0 AND skill='t' AND split='test' AND sample='9'"
    )
    database.commit()
    database.close()
    child = results_table(small)[2]
    assert child.difference is not None
    assert child.difference.n == 19
    assert child.difference.mean == pytest.approx((0.075 + 3 / 9) / 2)


def test_files_agree_with_rows(small: Path) -> None:
    paths = build_report(small)
    rows = results_table(small)
    records = json.loads(paths.table_json.read_text())
    assert [record["average"]["mean"] for record in records] == [row.average.mean for row in rows]
    assert records[0]["difference"] is None
    assert records[2]["skills"]["s"]["n"] == 10
    with paths.table_csv.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["s_low"]) for line in lines] == [row.skills["s"].low for row in rows]
    assert lines[0]["difference"] == ""
    assert [line["chosen"] for line in lines] == ["false", "false", "true"]


def test_text_shows_percent_and_fits(small: Path) -> None:
    rows = results_table(small)
    text = format_table(rows)
    assert "* best elite for s, best elite" in text
    assert "90.0 [59.6, 98.2]" in text
    assert "+18.8 [" in text
    assert "s (n=10)" in text
    assert "on the test samples" in text
    narrow = format_table(rows, width=90)
    assert "[59.6, 98.2]" not in narrow
    assert max(map(len, narrow.splitlines())) <= 90
    tight = format_table(rows, width=80)
    assert max(map(len, tight.splitlines())) <= 80
    assert "73.8 [" in tight
    assert format_table([]) == "Nothing has been measured yet."


def test_long_labels_are_folded_not_cut(small: Path) -> None:
    results = json.loads((small / "results.json").read_text())
    results["finalists"][0]["label"] = "all of the very many experts × 0.7"
    (small / "results.json").write_text(json.dumps(results))
    rows = results_table(small)
    for width in (60, 70, 80, 100, 140):
        text = format_table(rows, width=width)
        assert max(map(len, text.splitlines())) <= width
        assert "× 0.7" in text
        assert "73.8 [" in text
        assert "…" not in text
    assert "90.0" not in format_table(rows, width=60), "no room for single skills"
    assert "Samples: s 10, t 10." in format_table(rows, width=60)


def test_the_chosen_model_is_held_against_the_baselines(small: Path) -> None:
    journal = Journal(small)
    one, none = [[1.0]], [[0.0]]
    merge = answers("s", "test", 10 * one) + answers("t", "test", 5 * one + 5 * none)
    scaling = answers("s", "test", 10 * none) + answers("t", "test", 10 * none)
    journal.add(Individual(-2, Role.BASELINE, "equal merge", b"g", "h-2"), merge)
    journal.add(Individual(-3, Role.BASELINE, "all experts × 2", b"g", "h-3"), scaling)
    journal.close()
    results = json.loads((small / "results.json").read_text())
    results["finalists"] += [
        {"id": -2, "label": "equal merge", "group": "baseline"},
        {"id": -3, "label": "all experts × 2", "group": "baseline"},
    ]
    (small / "results.json").write_text(json.dumps(results))
    rows = results_table(small)
    assert [bool(row.against) for row in rows] == [row.chosen for row in rows]
    child = rows[2]
    assert child.against[-2].mean == pytest.approx((0.975 + 0.5) / 2 - 0.75)
    assert child.against[-2].n == 20
    assert child.against[-3].mean == pytest.approx((0.975 + 0.5) / 2)
    said = " ".join(headline(rows))
    assert "73.8 [" in said
    better, unclear = re.findall(r"(?:Better than|No clear difference from): (.*?) points\.", said)
    assert better.startswith("the best scaling (all experts × 2), +73.8 [+")
    assert "the best expert (expert a), +18.8 [" in unclear
    assert "the equal merge, -1.2 [" in unclear
    assert "No clear difference" in " ".join(format_table(rows, width=80).split())
    record = json.loads(build_report(small).table_json.read_text())[2]
    assert record["difference_to_baselines"]["-2"]["mean"] == child.against[-2].mean


def test_a_chosen_expert_is_said_to_be_one(small: Path) -> None:
    results = json.loads((small / "results.json").read_text())
    results["chosen"] = 0
    (small / "results.json").write_text(json.dumps(results))
    assert headline(results_table(small))[1:] == ["It is the best expert itself."]


def test_labels_cannot_steer_a_terminal(small: Path) -> None:
    results = json.loads((small / "results.json").read_text())
    results["finalists"][0]["label"] = "a\x1b[2J\u202eb\nc"
    (small / "results.json").write_text(json.dumps(results))
    text = format_table(results_table(small))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "a⟨ESC⟩[2J⟨U+202E⟩b⟨LF⟩c" in text


def test_unfinished_run_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", children=12, finished=False)
    rows = results_table(folder)
    assert {row.split for row in rows} == {"optimisation"}
    assert [row.group for row in rows[:4]] == ["base", "expert", "expert", "expert"]
    assert {row.group for row in rows[4:]} == {"elite"}
    assert not any(row.chosen for row in rows)
    journal = Journal(folder)
    scores = journal.scores("optimisation")
    journal.close()
    best = max(np.mean(list(scores[n].values())) for n in range(3, 15))
    assert rows[4].average.mean == pytest.approx(best)
    assert "flatter" in format_table(rows)


def test_incomplete_test_falls_back_together(small: Path) -> None:
    database = sqlite3.connect(small / "journal.sqlite")
    database.execute("DELETE FROM measurements WHERE individual=2 AND skill='t' AND split='test'")
    database.commit()
    database.close()
    rows = results_table(small)
    assert len(rows) == 3
    assert {row.split for row in rows} == {"optimisation"}


def test_no_run_directory(tmp_path: Path) -> None:
    for call in (results_table, build_report):
        with pytest.raises(UserError, match="is no run directory"):
            call(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("manifest.json", None, "is missing"),
        ("manifest.json", "{", "cannot be read"),
        ("manifest.json", "[]", "JSON object"),
        ("manifest.json", '{"recipe": {"name": "x"}}', "recipe that this version cannot read"),
        ("results.json", '{"finalists": [{"id": 0}]}', "cannot be understood"),
        (
            "results.json",
            '{"finalists": [{"id": 77, "label": "x", "group": "elite"}], "chosen": 77, '
            '"chosen_by": "x"}',
            "77",
        ),
    ],
)
def test_damaged_files_are_named(small: Path, name: str, content: str | None, said: str) -> None:
    (small / name).unlink()
    if content is not None:
        (small / name).write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        results_table(small)
    assert name in str(caught.value)
