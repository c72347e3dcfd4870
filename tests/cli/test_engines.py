"""A run is the same with either engine."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli


def measured(run: Path, split: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(run / "journal.sqlite")) as journal:
        return journal.execute(
            "SELECT individual, skill, sample, text, tokens, score, path FROM measurements "
            "WHERE split = ? ORDER BY individual, skill, sample",
            (split,),
        ).fetchall()


@pytest.mark.slow
def test_a_run_is_the_same_with_either(tmp_path: Path, recipe: Path, cli: Cli) -> None:
    """In fp32; what is chosen by and reported is of the sequential path in both."""
    seen = {}
    for engine in ("sequential", "population"):
        out = tmp_path / engine
        result = cli(
            "evolve", recipe, "--out", out, "--set", f"evaluation.engine={engine}", "--quiet"
        )
        assert result.code == 0, result.err
        seen[engine] = {split: measured(out, split) for split in ("optimisation", "test")}
    for split in ("optimisation", "test"):
        one, two = seen["sequential"][split], seen["population"][split]
        assert [row[:6] for row in one] == [row[:6] for row in two]
        assert len(one) > 100
    assert {row[6].split("/")[0] for row in seen["population"]["optimisation"]} == {"population"}
    assert {row[6].split("/")[0] for row in seen["population"]["test"]} == {"sequential"}
