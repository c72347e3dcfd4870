"""The commands `sandbox build` and `sandbox list`."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from cqd_hub.evaluation.machines import images
from tests.cli.conftest import Cli


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CQD_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    with tarfile.open(tmp_path / "root.tar", "w") as tar:
        for name in ("usr/bin/python3", "bin/bash", "root/.bashrc"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    return tmp_path / "root.tar"


def test_build_and_list(cli: Cli, tar: Path) -> None:
    made = cli("sandbox", "build", "--tar", tar, "--to", "mine")
    if "cannot be put together" in made.err:
        pytest.skip(made.err)
    (image,) = images()
    assert (made.code, made.out.strip()) == (0, str(image.folder))
    assert cli("sandbox", "list").out.split()[0] == "mine"
    record = json.loads(cli("sandbox", "list", "--json").out)
    assert (record["name"], record["state"]) == ("mine", "ok")
    again = cli("sandbox", "build", "--tar", tar, "--to", "mine")
    assert again.code == 2
    assert "--force" in again.err
    (image.folder / "stamp.json").write_text("{}")
    for arguments in (["list"], ["build", "--to", "mine"]):
        result = cli("sandbox", *arguments)
        assert result.code == 2
        assert "the stamp cannot be read" in result.err
    assert cli("sandbox", "build", "--tar", tar, "--to", "mine", "--force").code == 0


def test_bad_input(cli: Cli, tmp_path: Path) -> None:
    result = cli("sandbox", "build", "--tar", tmp_path / "none.tar")
    assert (result.code, result.out) == (2, "")
    assert "no such file" in result.err
    assert "Traceback" not in result.err
    assert cli("sandbox", "list").out == ""
