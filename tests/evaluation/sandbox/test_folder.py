"""Emptying what an answer left behind."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cqd_hub.evaluation.sandbox._start import Start, bubblewrap_start, landlock_start
from cqd_hub.evaluation.sandbox.box import folder, landlock

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


def dig(root: Path, depth: int, name: str, *, closed: bool = True) -> None:
    """Make folders inside each other, closed to their owner, with a file in each."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        if closed:
            os.fchmod(here, 0)
        os.close(here)
        here = inner
    os.close(here)


def test_emptying_a_deep_tree(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.write_text("kept")
    (inside / "link").symlink_to(outside)
    (inside / "up").symlink_to(tmp_path)
    dig(inside, 3000, "a")
    folder.empty(str(inside))
    assert os.listdir(inside) == []
    assert outside.read_text() == "kept"


@pytest.mark.parametrize("start", [bubblewrap_start, landlock_start])
def test_closing_a_worker_with_a_deep_tree(
    start: Callable[[], AbstractContextManager[Start]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with start():
        (mine,) = tmp_path.iterdir()
        dig(mine, 2000, "a")
    assert list(tmp_path.iterdir()) == []


def test_too_long_paths_are_too_many_files(tmp_path: Path) -> None:
    dig(tmp_path, 20, "n" * 250, closed=False)
    assert folder.usage(str(tmp_path), 100)[1] == 101
    folder.empty(str(tmp_path))


def test_parts_of_a_tree(tmp_path: Path) -> None:
    for name in ("bin", "lib/python3/site-packages/secret", "lib/python3/json", "lib/other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lib/link").symlink_to("/etc")
    whole, opened = landlock.parts(str(tmp_path), [f"{tmp_path}/lib/python3/site-packages"])
    assert sorted(whole) == [
        f"{tmp_path}/{name}" for name in ("bin", "lib/other", "lib/python3/json")
    ]
    assert sorted(opened) == [str(tmp_path), f"{tmp_path}/lib", f"{tmp_path}/lib/python3"]
    assert landlock.parts(str(tmp_path), []) == ([str(tmp_path)], [])
