"""What is said of `evaluation.engine: vllm` where there is no vLLM, another one, or no GPU."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Cli
from tests.cli.test_bad_input import refused

ASKED = ("--set", "evaluation.engine=vllm", "--set", "evaluation.device=cpu")


def installed() -> bool:
    try:
        return bool(version("vllm"))
    except PackageNotFoundError:
        return False


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages are found in before all others."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def claim(folder: Path, number: str) -> None:
    """Say that a version of vLLM is installed; there is no code of it."""
    about = folder / f"vllm-{number}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n")


@pytest.mark.skipif(installed(), reason="vLLM is installed")
@pytest.mark.parametrize("command", ["evolve", "plan"])
def test_it_is_not_installed(cli: Cli, recipe: Path, command: str) -> None:
    result = cli(command, recipe, *ASKED)
    assert result.code == 2
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "vLLM is not installed" in errors[0]
    assert "evaluation.engine" in errors[0]
    assert "pip install 'vllm>=0.32,<0.34'" in errors[0]
    assert result.out == ""


@pytest.mark.parametrize("number", ["0.31.0", "0.34.0rc1", "1.0"])
def test_it_is_another(cli: Cli, recipe: Path, found: Path, number: str) -> None:
    claim(found, number)
    line = refused(cli, recipe, *ASKED)
    assert f"vLLM is {number}, this needs >=0.32,<0.34" in line


@pytest.mark.parametrize("number", ["0.32.0", "0.33.1+cu130"])
def test_there_is_no_gpu(cli: Cli, recipe: Path, found: Path, number: str) -> None:
    claim(found, number)
    line = refused(cli, recipe, *ASKED)
    assert "vLLM needs the first GPU that CUDA shows, not cpu" in line
    assert "evaluation.device" in line


def test_auto_never_chooses_it(cli: Cli, recipe: Path, found: Path) -> None:
    """Not even where it is installed."""
    claim(found, "0.33.0")
    result = cli("plan", recipe, "--set", f"evaluation.device={device()}")
    assert result.code == 0, result.err
    assert "vllm" not in (result.out + result.err).lower()


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
