"""The wheel holds all that the quickstart needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_quickstart_from_the_wheel(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
    subprocess.run([*install, tmp_path / "site", wheel], check=True)
    few = "samples={optimisation: 8, validation: 8, test: 8}"
    command = [sys.executable, "-m", "cqd_hub.cli.app", "evolve", "quickstart", "--children", "4"]
    done = subprocess.run(
        [*command, "--set", few, "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"base", "expert os", "aggregate"} <= {
        part for line in done.stdout.splitlines() for part in json.loads(line)["label"].split(", ")
    }
    manifest = json.loads((tmp_path / "runs" / "quickstart" / "manifest.json").read_text())
    assert str(tmp_path / "site") in manifest["folder"]
