"""The page: self-contained, complete, and deaf to what a model wrote."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cqd_hub import assets
from cqd_hub.recipe import Recipe, load_yaml
from cqd_hub.report import build_report, results_table, visible
from cqd_hub.report._data import load_run
from cqd_hub.report._drafts import speculation
from cqd_hub.report._facts import about, facts, reproduction
from cqd_hub.report._page import sample_answers
from cqd_hub.report._text import cut, percent
from cqd_hub.run.journal import Measurement
from tests.report.runs import GUARANTEES, SKILLS, make_run

HOSTILE = (
    "</pre></div><script>alert(1)</script><img src=x onerror=alert(2)>"
    "<a href='javascript:alert(3)'>x</a>{{ 7*7 }}{% raw %}&lt;"
    "\x1b[31mred\x1b[0m\x00\x07\r\x85\u202egnp.exe\u2066\u200b\ufeff\u2028\U000e0041"
)


class Page(HTMLParser):
    """Everything in a page that could act, and the text of its answers."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.answers: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        if tag == "pre":
            self.answers.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if "pre" in self.open:
            self.answers[-1] += data


def page_of(folder: Path) -> tuple[str, Page]:
    html = build_report(folder).page.read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Page]:
    folder = make_run(tmp_path_factory.mktemp("page") / "run", children=20)
    return folder, *page_of(folder)


def test_hostile_answers_are_inert(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", children=6, answer=HOSTILE + "A" * 100_000)
    html, page = page_of(folder)
    assert_inert(html, page)
    shown = next(text for text in page.answers if "alert(1)" in text)
    assert "</pre></div><script>alert(1)</script>" in shown
    assert "{{ 7*7 }}{% raw %}&lt;" in shown
    assert (
        "⟨ESC⟩[31mred⟨ESC⟩[0m⟨NUL⟩⟨BEL⟩⟨CR⟩⟨U+0085⟩⟨U+202E⟩gnp.exe⟨U+2066⟩⟨U+200B⟩⟨U+FEFF⟩⟨U+2028⟩⟨U+E0041⟩"
        in shown
    )
    assert max(map(len, page.answers)) < 5000
    omitted = len(HOSTILE) + 100_000 - 2000
    assert f"{omitted:,} more characters not shown" in "".join(page.text)
    assert len(html) < 2_000_000


def test_hostile_names_are_inert(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", children=6, label=HOSTILE + "$\\frac$ \ud800")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["engine"] = HOSTILE
    manifest["versions"] = {HOSTILE: ["\udfff", HOSTILE]}
    manifest["models"]["experts"][HOSTILE] = {"path": HOSTILE}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    html, page = page_of(folder)
    assert_inert(html, page)
    assert "⟨U+D800⟩" in html
    assert "⟨U+DFFF⟩" in html


def assert_inert(html: str, page: Page) -> None:
    html.encode()
    assert page.open == [], "every element is closed where it should be"
    acting = {"script", "a", "iframe", "object", "embed", "link", "form", "base", "svg"}
    assert not acting & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("href", "style", "srcdoc", "action")
        if name == "src":
            assert (tag, value[:22]) == ("img", "data:image/png;base64,")
    hidden = re.compile(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
    )
    assert not hidden.search(html)


def test_self_contained(plain: tuple[Path, str, Page]) -> None:
    _, html, page = plain
    assert_inert(html, page)
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert "url(" not in html
    (policy,) = [
        value for tag, name, value in page.attributes if tag == "meta" and "default-src" in value
    ]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_policy_admits_the_style(plain: tuple[Path, str, Page]) -> None:
    import base64
    import hashlib

    _, html, _ = plain
    (style,) = re.findall("<style>(.*?)</style>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in html


def test_says_what_was_run(plain: tuple[Path, str, Page]) -> None:
    folder, _, page = plain
    text = " ".join("".join(page.text).split())
    for said in (
        "synthetic",
        "0123456789ab…",
        "sequential float32 cpu",
        GUARANTEES,
        "20 of 20 children",
        "cqd-hub evolve synthetic.yaml",
        "validation average",
        "95 % confidence intervals",
        "n = 50",
        "materialise",
    ):
        assert said in text, said
    assert "0123456789abc" not in text, "hashes are short"
    for row in results_table(folder):
        assert percent(row.average.mean) in text
        assert f"{percent(row.average.low)} – {percent(row.average.high)}" in text
    assert text.count("sample ") >= 3


def test_figures_have_words(plain: tuple[Path, str, Page]) -> None:
    _, _, page = plain
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(alts) == page.tags.count("img") == page.tags.count("figcaption") == 6
    assert all(len(alt) > 40 for alt in alts)


def test_answers_start_unaltered(tmp_path: Path) -> None:
    # HTML drops one line feed after <pre>; the answer's own must survive.
    answer = "\n\n  indented\n\ttab"
    _, page = page_of(make_run(tmp_path / "run", children=3, answer=answer))
    assert "\n" + answer in page.answers


def test_extended_run_is_not_called_finished(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", children=4)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["recipe"]["search"]["children"] = 50
    (folder / "manifest.json").write_text(json.dumps(manifest))
    html, _ = page_of(folder)
    assert "was extended and has not finished" in html


def test_visible() -> None:
    assert visible("plain\n\ttext é 日本 😀") == "plain\n\ttext é 日本 😀"
    assert visible("a\tb\n", one_line=True) == "a⟨TAB⟩b⟨LF⟩"
    assert visible("\ud800\x7f\x9b") == "⟨U+D800⟩⟨U+007F⟩⟨U+009B⟩"


def test_cut_by_characters_and_lines() -> None:
    assert cut("short") == ("short", 0)
    assert cut("x" * 2100) == ("x" * 2000, 100)
    kept, omitted = cut("\n" * 100)
    assert kept.count("\n") == 59
    assert omitted == 41


def test_percent_has_no_negative_zero() -> None:
    assert percent(-0.0001, signed=True) == "0.0"
    assert percent(0.1234, signed=True) == "+12.3"


def test_facts_of_any_shape() -> None:
    assert facts("ab" * 20) == [("", "abababababab…")]
    assert facts({"x": {"y": 1, "z": {"q": [1, 2]}}, "w": None}) == [
        ("x", "y 1 · z.q 1, 2"),
    ]


def test_what_was_run_is_in_words() -> None:
    model = {"path": "models/x", "reference": None, "sha256": "ab" * 32, "base_model": []}
    said = dict(
        about(
            {
                "models": {"base": model, "experts": {"os": model | {"licence": "mit"}}},
                "tasks": {"os": {"task": "t", "samples": {"optimisation": 1, "test": 3}}},
                "versions": {"python": "3.11", "device": "x86_64", "threads": "2"},
            }
        )
    )
    assert said["Models"] == [
        ("base", "models/x · sha256 abababababab…"),
        ("expert os", "models/x · sha256 abababababab… · licence mit"),
    ]
    assert said["Tasks"] == [("os", "task t · samples: optimisation 1 · test 3")]
    assert said["Machine"] == [("device", "x86_64"), ("threads", "2")]
    assert said["Versions"] == [("python", "3.11")]


def test_questions_stand_above_their_answers(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", children=3)
    asked = {skill: {str(n): f"Q{n}: {HOSTILE}" for n in range(1000)} for skill in SKILLS}
    (folder / "questions.json").write_text(json.dumps(asked))
    html, page = page_of(folder)
    assert_inert(html, page)
    first = next(place for place, text in enumerate(page.answers) if text.startswith("\nQ3"))
    assert "<script>alert(1)</script>" in page.answers[first]
    assert page.answers[first + 1].strip().startswith("print(")
    (folder / "questions.json").write_text("[1")
    html, _ = page_of(folder)
    assert "on grey the question" not in html


def test_samples_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run", children=3))
    names = ["test:10", "test:9", "test:100", "dev:3", "²", ""]
    run.answers[:] = [Measurement("os", "test", name, 1.0, "text") for name in names]
    shown = [one.sample for block in sample_answers(run) for one in block.shown]
    assert shown == ["", "dev:3"]
    run.answers[:] = [one for one in run.answers if one.sample.startswith("test")]
    shown = [one.sample for block in sample_answers(run) for one in block.shown]
    assert shown == ["test:9", "test:10"]


def test_candidates_and_baselines_are_told_apart(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", children=4)
    results = json.loads((folder / "results.json").read_text())
    results["candidates"].append(
        {"id": -2, "label": "equal merge", "validation": 0.99, "optimisation": None}
    )
    (folder / "results.json").write_text(json.dumps(results))
    _, page = page_of(folder)
    text = " ".join("".join(page.text).split())
    part = text[text.index("How the model was chosen") :]
    assert "equal merge #" not in part
    assert re.search(r"equal merge ?baseline, for comparison ?99\.0", part)
    assert len(re.findall("candidate, chosen", part)) == 1


def test_how_to_reproduce(tmp_path: Path) -> None:
    path = assets.folder("recipes") / "quickstart.yaml"
    folder = make_run(tmp_path / "run", children=3)
    manifest = json.loads((folder / "manifest.json").read_text())

    def said(**changes: Any) -> tuple[str, bool, str]:
        recipe = load_yaml(path, Recipe, [f"{key}={value}" for key, value in changes.items()])
        manifest["recipe"] = recipe.model_dump(mode="json")
        manifest["folder"] = "/where/it/was"
        return reproduction(dataclasses.replace(load_run(folder), recipe=recipe, manifest=manifest))

    assert said() == ("cqd-hub evolve quickstart", True, "/where/it/was")
    again = "cqd-hub evolve quickstart --children 8 --seed 3"
    assert said(**{"search.children": 8, "seed": 3}) == (again, True, "/where/it/was")
    manifest["seeds"] = {"source": "me/run"}
    assert said() == ("cqd-hub evolve quickstart.yaml", False, "/where/it/was")
    del manifest["seeds"]
    changed = said(**{"variation.mutation.w_max": 0.3})
    assert changed == ("cqd-hub evolve quickstart.yaml", False, "/where/it/was")


def test_planned_and_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", children=4)
    plan = {
        "per_child_seconds": 2.0,
        "child": {"materialise": 0.1, "generate": 1.5, "execute": 0.4},
        "memory": {"model": 10**9},
        "host": 10**9,
        "disk": {"run": 10**6},
    }
    took = {"children": 4, "seconds": 12.0, "host": 2 * 10**9, "disk": 3 * 10**6}
    (run / "plan.json").write_text(json.dumps({"plan": plan, "took": took}))
    text = re.sub(r"<[^>]+>", " ", build_report(run).page.read_text())
    part = " ".join(text[text.index("Planned and measured") :].split())
    assert "wall time per child (throughput) 2.000 s 3.000 s 1.50" in part
    assert "memory of the process, at its peak 1.00 GB 2.00 GB 2.00" in part
    assert "memory of the device" not in part  # was not measured
    (run / "plan.json").write_text("[]")
    assert "Planned and measured" not in build_report(run).page.read_text()


def test_what_drafts_were_worth_by_step_size(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run", children=7))
    small, bold = speculation(run)
    assert small.operators == "linear crossover, svd mutation of the expert (w_max 0.1)"
    assert bold.operators.endswith("(w_max 0.5)")
    assert (small.children, bold.children) == (3, 4)
    assert (small.tokens, small.drafted, small.passes) == (8.0, 0.9, 1.5)
    assert (bold.tokens, bold.drafted, bold.passes) == (8.0, 0.5, 3.5)
    page = build_report(run.folder).page.read_text()
    assert re.search(r"w_max 0\.1\)</th><td>3</td><td>8\.0</td><td>90 %</td><td>1\.5<", page)
