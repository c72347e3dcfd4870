"""The main job over episodes: killed and resumed, published kinds, refusals."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest

from cqd_hub import evolve
from tests.cli.conftest import Cli
from tests.cli.test_evolve import command, content, evaluated, wait_for
from tests.conftest import Models
from tests.evaluation.episodes.common import log, manifest

RECIPE = """\
name: talk
base: {base}
experts: {{first: {first}, second: {second}}}
tasks: [.]
skills:
  letters: {{task: letters}}
  remembered: {{task: remembered, options: {{dialect: long}}}}
samples: {{optimisation: 6, validation: 4, test: 4}}
search: {{children: 4, children_per_step: 2}}
"""


def prepared(folder: Path, models: Models, **options: object) -> Path:
    manifest(folder, options=options, max_new_tokens=12)
    manifest(folder, "Remembered", name="remembered", max_new_tokens=12)
    first, second, _ = models.full
    text = RECIPE.format(base=models.base, first=first, second=second)
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, models: Models) -> Path:
    """A run that nobody disturbed, with its recipe beside it."""
    place = tmp_path_factory.mktemp("whole")
    evolve(prepared(place, models), out=place / "run")
    return place


def test_what_is_recorded(whole: Path) -> None:
    found = json.loads((whole / "run" / "manifest.json").read_text())
    assert found["sandbox"] is None
    assert found["tasks"]["letters"]["environment"] == "toy.py:Letters"
    assert found["tasks"]["letters"]["kind"] == "letters/v1"
    assert found["environments"]["remembered"]["guarantees"].startswith("pid ")
    assert found["recipe"]["skills"]["remembered"]["options"] == {"dialect": "long"}
    with contextlib.closing(sqlite3.connect(whole / "run" / "journal.sqlite")) as journal:
        rows = journal.execute("SELECT DISTINCT path, repeat FROM measurements").fetchall()
        (text,) = journal.execute("SELECT text FROM measurements LIMIT 1").fetchone()
    assert rows == [("sequential/float32/cpu+letters/v1", 0)]
    assert set(json.loads(text)[0]) >= {"reply", "tokens"}
    assert (whole / "run" / "report.html").exists()


def test_killed_and_resumed(whole: Path, tmp_path: Path, models: Models) -> None:
    recipe, out = prepared(tmp_path, models), tmp_path / "run"
    process = subprocess.Popen(command(recipe, out, "-q"), text=True)
    wait_for(lambda: evaluated(out) >= 4, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    evolve(recipe, out=out)
    assert content(out) == content(whole / "run")


def test_a_failing_environment_loses_nothing(
    whole: Path, tmp_path: Path, models: Models, cli: Cli
) -> None:
    recipe, out = prepared(tmp_path, models, fail="step:validation-1:2"), tmp_path / "run"
    first = cli("evolve", recipe, "--out", out, "-q")
    assert first.code == 1
    assert first.err.splitlines()[-1] == "error: the machine of validation-1 died"
    assert evaluated(out) >= 1 + 2 + 4
    (tmp_path / "mended").touch()
    assert cli("evolve", recipe, "--out", out, "-q").code == 0
    assert content(out) == content(whole / "run")


def test_another_kind_is_refused(whole: Path, cli: Cli) -> None:
    text = (whole / "letters.yaml").read_text()
    toy = (whole / "toy.py").read_text()
    try:
        (whole / "toy.py").write_text(toy.replace("self.options.kind\n", "'letters/v2'\n"))
        result = cli("evolve", whole / "recipe.yaml", "--out", whole / "run", "-q")
        assert result.code == 2
        says = 'holds a run with tasks.letters.kind "letters/v1", now "letters/v2"'
        assert says in result.err
    finally:
        (whole / "toy.py").write_text(toy)
    assert (whole / "letters.yaml").read_text() == text


def test_scores_again(whole: Path, cli: Cli) -> None:
    result = cli("eval", whole / "run", "best", "--split", "test", "--json")
    assert result.code == 0, result.err
    (row,) = [json.loads(line) for line in result.out.splitlines()]
    assert set(row["skills"]) == {"letters", "remembered"}
    assert log(whole, "open")
