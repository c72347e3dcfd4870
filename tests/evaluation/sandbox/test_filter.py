"""The system-call filter for an ordinary user on a kernel whose Landlock lets files be cut off."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import ctypes, os, sys
from cqd_hub.evaluation.sandbox.box import kernel, seccomp
libc = ctypes.CDLL(None)
os.chdir(sys.argv[1])
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
seccomp.install(seccomp.assemble(launchers_user=True, truncate=False))
for action in (
    lambda: os.truncate("kept", 0),
    lambda: os.open("kept", os.O_RDONLY | os.O_TRUNC),
    lambda: os.open("kept", 3 | os.O_TRUNC),
):
    try:
        action()
        print("worked")
    except PermissionError:
        print("refused")
assert libc.syscall(437, -100, b"kept", None, 0) == -1
os.close(os.open("kept", os.O_RDONLY))
os.close(os.open("written", os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
os.close(os.open("written", os.O_RDWR | os.O_TRUNC))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a filter of Linux")
def test_cutting_off_files(tmp_path: Path) -> None:
    kept, written = tmp_path / "kept", tmp_path / "written"
    kept.write_text("all of it")
    written.write_text("gone")
    done = subprocess.run([sys.executable, "-c", CODE, tmp_path], capture_output=True, text=True)
    assert (done.stdout.split(), done.returncode) == (["refused"] * 3, 0), done.stderr
    assert (kept.read_text(), written.read_text()) == ("all of it", "")
