"""Progress, the log file, and the check of the disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cqd_hub.errors import UserError
from cqd_hub.genome import Basis, Genome, mutate_child
from cqd_hub.recipe import Recipe
from cqd_hub.run.log import Logged
from cqd_hub.run.progress import Pace, Progress, Silent, best_average
from cqd_hub.run.space import check_space
from cqd_hub.search import Cycle, EliteSampling, GridArchive

STATE = Progress(
    children=4,
    total=20,
    skill="db",
    best={"db": 0.5, "os": 0.25},
    mean={"db": 0.4, "os": 0.2},
    average=0.3751,
    coverage=0.01,
    qd_score=2.5,
    per_minute=None,
    eta_seconds=None,
    reused=0.0,
)


class Noted(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def phase(self, name: str) -> None:
        self.events.append(name)

    def note(self, line: str) -> None:
        self.events.append(line)

    def progress(self, progress: Progress) -> None:
        self.events.append(progress)

    def measured(self, done: int, total: int) -> None:
        self.events.append((done, total))


def test_every_event_is_logged_and_passed_on(tmp_path: Path) -> None:
    observer = Noted()
    log = Logged(observer, tmp_path)
    log.phase("experts")
    log.note("ein Wörtchen")
    log.progress(STATE)
    log.measured(2, 9)
    assert observer.events == ["experts", "ein Wörtchen", STATE, (2, 9)]
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        "phase experts",
        "ein Wörtchen",
        "child 4/20 skill=db db=0.500/0.400 os=0.250/0.200 average=0.3751 coverage=0.0100 qd=2.500",
        "individual 2/9",
    ]
    Logged(observer, tmp_path).note("later")
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 5
    unwritable = Logged(observer, tmp_path / "log.txt")  # no folder: as on a full disk
    unwritable.note("still told")
    assert observer.events[-1] == "still told"
    assert STATE.as_dict()["best"] == {"db": 0.5, "os": 0.25}


def test_the_pace_is_that_of_the_last_children() -> None:
    pace = Pace(window=3)
    assert pace.per_minute() is None
    pace.tick(100.0)
    assert pace.per_minute() is None
    pace.tick(130.0)
    assert pace.per_minute() == pytest.approx(2.0)
    for now in (140.0, 150.0, 160.0):
        pace.tick(now)
    assert pace.per_minute() == pytest.approx(6.0)
    still = Pace()
    still.tick(1.0)
    still.tick(1.0)
    assert still.per_minute() is None


def test_best_average_is_over_the_elites_of_all_archives() -> None:
    bounds = np.array([[0.0, 1.0], [0.0, 1.0]])
    cycle = Cycle(
        archives=[GridArchive(skill=k, bounds=bounds, bins=2) for k in range(2)],
        sampling=EliteSampling(low=0.5, high=0.8),
        seed=0,
    )
    assert best_average(cycle) == 0.0
    cycle.tell(0, np.array([0.9, 0.1]))
    cycle.tell(1, np.array([0.4, 0.7]))
    assert best_average(cycle) == pytest.approx(0.55)


def lineup(basis: Basis, children: int, *, merge: int | None = None, **variation: Any) -> Any:
    made = Recipe.model_validate(
        {
            "name": "r",
            "base": "b",
            "experts": {"x": "x", "y": "y", "z": "z"},
            "skills": {"a": {"task": "t"}, "c": {"task": "u"}},
            "search": {"children": children},
            "variation": variation,
        }
    )
    merges = None if merge is None else SimpleNamespace(size=merge)
    return SimpleNamespace(recipe=made, basis=basis, merges=merges)


def test_a_run_that_cannot_fit_is_refused_before_it_begins(tmp_path: Path, basis: Basis) -> None:
    check_space(tmp_path, lineup(basis, 200), 2 * 150, 0)
    sizes = r"the run needs about [\d.]+ [MG]B, the disk has [\d.]+ [MG]B free"
    with pytest.raises(UserError, match=sizes):
        check_space(tmp_path, lineup(basis, 10**9), 2 * 10**6, 0)


def test_what_a_run_needs_counts_the_cores_of_child_mutation(
    tmp_path: Path, basis: Basis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate lies between what such genomes take and a little more."""
    plain = Genome.of_expert(basis.hash, basis.layout, 0)
    child = mutate_child(plain, np.random.default_rng(0), basis=basis, w_max=0.1)
    size, children = len(child.to_bytes()), 500
    of_child = {"mutation": {"kind": "svd", "of": "child"}}
    for free, fits in ((size * children, False), (1.2 * size * children + (12 << 20), True)):
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=int(free)))  # noqa: B023
        if fits:
            check_space(tmp_path, lineup(basis, children, **of_child), 2 * 10, 0)
        else:
            with pytest.raises(UserError, match="the run needs about"):
                check_space(tmp_path, lineup(basis, children, **of_child), 2 * 10, 0)
    assert size > 3 * len(plain.to_bytes())


def test_what_a_run_needs_counts_merges_up_to_their_budget(
    tmp_path: Path, basis: Basis, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = 10**9
    (tmp_path / "merges").mkdir()
    with (tmp_path / "merges" / "x.safetensors").open("wb") as file:
        file.truncate(5 * merge)  # there already, of the default budget of 20 GB
    for children, gigabytes in ((7, 10), (500, 15)):
        for free, fits in ((gigabytes - 0.1, False), (gigabytes + 0.1, True)):
            usage = SimpleNamespace(free=free * merge)
            monkeypatch.setattr("shutil.disk_usage", lambda folder, usage=usage: usage)
            asked = lineup(basis, children, merge=merge)
            if fits:
                check_space(tmp_path, asked, 20, 0)
            else:
                with pytest.raises(UserError, match="the run needs about"):
                    check_space(tmp_path, asked, 20, 0)
