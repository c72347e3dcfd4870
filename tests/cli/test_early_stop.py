"""Evolutions that ask a child no more once no archive could keep it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import subprocess
from pathlib import Path

import pytest

from cqd_hub.recipe import Recipe, load_yaml
from cqd_hub.report import build_report
from cqd_hub.run.evolve import evolve
from cqd_hub.run.journal import Journal
from tests.cli.conftest import RECIPE, Cli
from tests.cli.test_evolve import command, content, evaluated, wait_for
from tests.cli.test_executors import archives

CHILDREN = 14


def stopped(folder: Path) -> dict[int, dict[str, int]]:
    journal = Journal(folder)
    try:
        return journal.stopped()
    finally:
        journal.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with cells so wide that many children enter none, and two runs of it."""
    from cqd_hub import assets

    place = tmp_path_factory.mktemp("early")
    models = (assets.folder("recipes") / "quickstart" / "models").resolve()
    text = RECIPE.format(models=models)
    text = text.replace("validation: 12, test: 12", "validation: 2, test: 2")
    text = text.replace("children: 6", f"archive: {{kind: grid, bins: 2}}, children: {CHILDREN}")
    (place / "without.yaml").write_text(text)
    (place / "recipe.yaml").write_text(text.replace("search: {", "search: {early_stop: true, "))
    for recipe, run in (("without", "without"), ("recipe", "run")):
        asyncio.run(evolve(load_yaml(place / f"{recipe}.yaml", Recipe), place, place / run))
    return place


def test_archives_order_and_choice_are_those_of_a_run_without(place: Path) -> None:
    without, run = place / "without", place / "run"
    assert archives(run, place / "recipe.yaml") == archives(without, place / "without.yaml")
    gone, all_, some = stopped(run), content(without), content(run)
    assert gone
    assert not stopped(without)
    assert some["told"] == all_["told"]
    assert some["results"] == all_["results"]
    assert [row[:3] + row[4:] for row in some["individuals"]] == [
        row[:3] + row[4:] for row in all_["individuals"]
    ]
    for row, old in zip(some["individuals"], all_["individuals"], strict=True):
        lineage = json.loads(row[3])
        assert lineage.pop("stopped_early", None) == gone.get(row[0])
        assert lineage == json.loads(old[3])
    assert set(some["measurements"]) < set(all_["measurements"])
    spared = len(all_["measurements"]) - len(some["measurements"])
    assert spared == sum(36 - sum(answered.values()) for answered in gone.values())
    said = f"{len(gone)} of {CHILDREN} children were stopped early: "
    assert said + f"{100 * spared / 36 / CHILDREN:.1f} % of all" in (run / "log.txt").read_text()


def test_the_report_says_so(place: Path) -> None:
    page = build_report(place / "run", lineage_of=next(iter(stopped(place / "run")))).page
    count = len(stopped(place / "run"))
    assert f"{count} children were stopped early" in page.read_text()
    page = build_report(place / "without").page
    assert "stopped early" not in page.read_text()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_end(place: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(place / "recipe.yaml", out, "-q"), stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: evaluated(out) > 9, process)
    process.kill()
    process.wait()
    assert cli("evolve", place / "recipe.yaml", "--out", out, "-q").code == 0
    assert content(out) == content(place / "run")


@pytest.mark.slow
def test_a_worker_process_decides_the_same(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    subprocess.run(command(place / "recipe.yaml", out, "-q", "--workers", "1"), check=True)
    assert content(out) == content(place / "run")


def test_the_grid_free_archive_is_refused(place: Path, tmp_path: Path, cli: Cli) -> None:
    result = cli(
        "evolve",
        place / "recipe.yaml",
        "--out",
        tmp_path / "run",
        "--set",
        "search.archive={kind: novelty}",
    )
    assert result.code == 2
    assert "early_stop needs grid archives" in result.err
    assert "use archive: {kind: grid}" in result.err
    assert len(result.err.splitlines()) == 1


def test_a_run_from_before_the_key_goes_on(place: Path, tmp_path: Path, cli: Cli) -> None:
    # And one that began without it cannot be changed to it.
    out, manifest = place / "without", place / "without" / "manifest.json"
    old = json.loads(manifest.read_text())
    del old["recipe"]["search"]["early_stop"]
    manifest.write_text(json.dumps(old))
    assert cli("evolve", place / "without.yaml", "--out", out, "-q").code == 0
    result = cli("evolve", place / "recipe.yaml", "--out", out, "-q")
    assert result.code == 2
    assert "recipe.search.early_stop false, now true" in result.err
    with contextlib.closing(sqlite3.connect(out / "journal.sqlite")) as journal:
        assert journal.execute("SELECT count(*) FROM told").fetchone() == (3 + CHILDREN,)
