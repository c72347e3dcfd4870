"""Printed commands are those a person can copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from cqd_hub.cli.called import command


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "some venv" / "bin" / "cqd-hub"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_a_script_below_the_folder_is_named_from_there(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [str(script)])
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    assert command("export", Path("a run"), "best") == (
        "'some venv/bin/cqd-hub' export 'a run' best"
    )
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert command("plan") == f"'{script}' plan"


def test_one_that_the_shell_finds_is_named_alone(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(script)])
    monkeypatch.setenv("PATH", str(script.parent))
    assert command("plan") == "cqd-hub plan"


def test_any_other_program_is_called_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cqd-hub", "/usr/bin/python3", "-c", ""):
        monkeypatch.setattr("sys.argv", [name])
        assert command("plan") == "cqd-hub plan"
