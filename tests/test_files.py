from __future__ import annotations

import errno
import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from cqd_hub import assets
from cqd_hub.errors import CqdHubError, RunError, UserError
from cqd_hub.files import new_folder, sha256_of, size_text, write_atomic
from cqd_hub.randomness import generator


def test_write_atomic(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    write_atomic(path, "ä")
    assert path.read_bytes() == "ä".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    write_atomic(path, b"\x00new")
    assert path.read_bytes() == b"\x00new"
    assert [one.name for one in path.parent.iterdir()] == ["file.json"]
    assert sha256_of(path) == hashlib.sha256(b"\x00new").hexdigest()


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(RunError, match=r"file: cannot be written: Is a directory \(free some"):
        write_atomic(path, "new")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    (tmp_path / "plain").write_text("x")
    with pytest.raises(RunError, match="cannot be written"):
        write_atomic(tmp_path / "plain" / "inside", "new")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_leaves_the_old_content(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        write_atomic(tmp_path / "file", "old")
        with pytest.raises(RunError, match=os.strerror(errno.ENOSPC)):
            write_atomic(tmp_path / "file", bytes(1 << 20))
        assert (tmp_path / "file").read_text() == "old"
        assert len(list(tmp_path.iterdir())) == 1
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_new_folder(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with new_folder(target) as folder:
        (folder / "x").write_text("1")
        assert not target.exists()
    assert (target / "x").read_text() == "1"
    assert target.stat().st_mode & 0o777 == 0o755
    with pytest.raises(FileExistsError), new_folder(target):
        pass
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "c") as folder:
        (folder / "none" / "x").write_text("1")
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as folder:
        (folder / "x").write_text("1")
    assert (tmp_path / "empty" / "x").exists()


def test_errors_are_one_line_with_place_and_remedy() -> None:
    assert str(UserError("is odd", where="f:1:2", remedy="do this")) == "f:1:2: is odd (do this)"
    assert str(RunError("is full")) == "is full"
    assert (UserError.exit_code, RunError.exit_code) == (2, 1)
    assert issubclass(UserError, CqdHubError)


def test_random_streams_are_repeatable_and_independent() -> None:
    draws = {
        (seed, index, purpose): tuple(generator(seed, index, purpose).integers(1 << 62, size=4))
        for seed in (0, 1, 2**32 - 1)
        for index in (0, 1, 1000)
        for purpose in ("parents", "crossover", "mutation")
    }
    assert len(set(draws.values())) == len(draws)
    for key, values in draws.items():
        assert tuple(generator(*key).integers(1 << 62, size=4)) == values
    # What journals were made with: a change here would make old runs unrepeatable.
    assert generator(0, 7, "parents").integers(1000, size=3).tolist() == [527, 974, 806]


def test_shipped_files_are_found() -> None:
    assert (assets.folder("recipes") / "quickstart.yaml").is_file()
    assert assets.folder("evals").is_dir()


def test_sizes_say_something_however_small() -> None:
    sizes = [size_text(count) for count in (0, 51_200, 12_345_678, 999_000_000, 1_250_000_000)]
    assert sizes == ["0.00 MB", "0.05 MB", "12.35 MB", "999.00 MB", "1.25 GB"]
