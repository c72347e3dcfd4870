"""How progress looks, at every width of a terminal, and in a pipe."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from cqd_hub.cli.observers import Clock, JsonLines, Lines, child_state, make_observer
from cqd_hub.cli.panel import Panel, State, fitted
from cqd_hub.run.progress import Progress

STATE = Progress(
    children=120,
    total=200,
    skill="os",
    best={"coding": 0.76, "os": 0.913, "db": 0.727},
    mean={"coding": 0.5, "os": 0.5, "db": 0.5},
    average=0.66,
    coverage=0.397,
    qd_score=164.3,
    per_minute=99.0,
    eta_seconds=48.0,
    reused=0.1,
)


def rendered(state: State, width: int) -> list[str]:
    panel = Panel()
    panel.state = state
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(panel)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_count_bar_and_time_left_always_show(width: int) -> None:
    first, second = rendered(child_state(STATE), width)
    assert first.startswith("  children 120/200 ━")
    assert first.rstrip().endswith("0:48 left for children")
    assert second.startswith("  best average 66.0 % · best coding 76.0, os 91.3, db 72.7 %")
    assert "…" not in first + second
    assert max(len(first), len(second)) <= width
    assert ("99 children/min" in second) == (width >= 120)


def test_the_bar_goes_before_the_time_left() -> None:
    (first, _) = rendered(child_state(STATE), 46)
    assert first.rstrip() == "  children 120/200 0:48 left for children"


def test_many_skills_do_not_push_out_what_fits() -> None:
    words = ("best average 1.0 %", "x" * 90, "coverage 2.0 %")
    assert fitted(words, 60) == "best average 1.0 % · coverage 2.0 %"


def test_a_pipe_gets_scores_in_percent(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(every=0)
    lines.phase("children")
    lines.progress(STATE)
    _, err = capsys.readouterr()
    first, second = err.splitlines()
    assert "optimisation samples" in first
    assert second.startswith("  120/200 children · 0:48 left for children · best average 66.0 %")
    assert len(second) <= 100
    assert not re.search(r"0\.\d\d", second)


def test_individuals_are_counted_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(every=0)
    lines.phase("validation")
    for done in (10, 11, 17):
        lines.measured(done, 17)
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "Choosing on validation samples"
    assert re.fullmatch(r"  11/17 individuals · \d+:\d\d left for this phase", err[1])
    assert err[2:] == ["  17/17 individuals"]


def test_time_left_counts_from_what_was_known() -> None:
    clock = Clock()
    assert clock.state(90, 100).left == "", "nothing was measured by this session"
    assert clock.state(95, 100).left


def test_json_says_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    JsonLines().measured(3, 8)
    assert json.loads(capsys.readouterr().err) == {"event": "measured", "done": 3, "total": 8}


def test_slow_children_are_counted_by_the_hour() -> None:
    slow = child_state(Progress(**{**STATE.as_dict(), "per_minute": 0.25, "eta_seconds": 7384.0}))
    assert "15 children/h" in slow.words
    assert slow.left == "2:03:04 left for children"


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with make_observer(quiet=True, as_json=False) as observer:
        observer.measured(1, 2)
        observer.progress(STATE)
    assert capsys.readouterr().err == ""
