"""A small world for the command line: the shipped models, few samples, few children."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from cqd_hub import assets
from cqd_hub.cli import app

RECIPE = """\
name: small
base: {models}/base
experts:
  coding: {models}/coding
  os: {models}/os
  db: {models}/db
skills:
  coding: {{task: quickstart_coding}}
  os: {{task: quickstart_os}}
  db: {{task: quickstart_db}}
samples: {{optimisation: 12, validation: 12, test: 12}}
search: {{children: 6, children_per_step: 2}}
"""


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in this process, through its own `main`."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr("sys.argv", ["cqd-hub", *map(str, arguments)])
        code = 0
        try:
            app.main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe file over the shipped models."""
    path = tmp_path / "recipe.yaml"
    models = assets.folder("recipes") / "quickstart" / "models"
    path.write_text(RECIPE.format(models=models.resolve()))
    return path


@pytest.fixture
def copied(tmp_path: Path, recipe: Path) -> Path:
    """The shipped models, copied so that a test may spoil them; the recipe uses the copies."""
    source = (assets.folder("recipes") / "quickstart" / "models").resolve()
    target = tmp_path / "models"
    for name in ("base", "coding", "os", "db"):
        shutil.copytree(source / name, target / name)
    recipe.write_text(recipe.read_text().replace(str(source), str(target)))
    return target
