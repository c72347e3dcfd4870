"""Workers: concurrency, replacement, cancellation, ordinary users, machines without anything."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import cqd_hub
from cqd_hub.errors import UserError
from cqd_hub.evaluation.sandbox import (
    Limits,
    PythonCall,
    Sandbox,
    Status,
    available,
    open_sandbox,
)
from cqd_hub.evaluation.sandbox._sandboxes import _docker_run
from tests.processes import children, kill_tree

from .conftest import GOOD

WARM = [state.kind for state in available() if state.ok and state.kind != "docker"]
pytestmark = pytest.mark.skipif(not WARM, reason="neither bubblewrap nor landlock works here")


@pytest.mark.parametrize("kind", WARM)
def test_many_at_once(kind: str) -> None:
    async def main() -> None:
        async with await open_sandbox(kind, workers=2) as sandbox:
            programs = [PythonCall("def f(x): return x * x", "f", ((i,),)) for i in range(40)]
            outcomes = await asyncio.gather(*(sandbox.run(program) for program in programs))
            assert [outcome.value for outcome in outcomes] == [[{"ok": i * i}] for i in range(40)]

    asyncio.run(main())


@pytest.mark.parametrize("kind", WARM)
def test_killed_worker_is_replaced(kind: str) -> None:
    async def main() -> None:
        before = set(children())
        async with await open_sandbox(kind, workers=1) as sandbox:
            for _ in range(2):
                (worker,) = set(children()) - before
                kill_tree(worker)  # what is below it may answer once more
                assert (await sandbox.run(GOOD)).value == [{"ok": 42}]
        assert set(children()) <= before

    asyncio.run(main())


@pytest.mark.parametrize("kind", WARM)
def test_cancelled_call_leaves_a_working_sandbox(kind: str) -> None:
    async def cancel_and_go_on(sandbox: Sandbox) -> None:
        slow = PythonCall("import time\ndef f(): time.sleep(60)", "f", ((),))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sandbox.run(slow, Limits(wall_seconds=50)), 0.3)
        assert (await sandbox.run(GOOD)).value == [{"ok": 42}]

    async def main() -> None:
        async with await open_sandbox(kind, workers=1) as sandbox:
            await cancel_and_go_on(sandbox)

    asyncio.run(main())


@pytest.mark.parametrize("kind", WARM)
def test_no_core_is_not_the_answers_fault(kind: str) -> None:
    """An answer that runs all the time but too slowly is repeated with a longer wall limit."""

    async def main() -> None:
        async with await open_sandbox(kind, workers=1) as sandbox:
            code = "import time\ndef f():\n while time.process_time() < 0.6: pass\n return 1"
            limits = Limits(cpu_seconds=5.0, wall_seconds=0.4)
            outcome = await sandbox.run(PythonCall(code, "f", ((),)), limits)
            assert (outcome.status, outcome.value) == (Status.FINISHED, [{"ok": 1}])

    asyncio.run(main())


ORDINARY = ["--reuid=65534", "--regid=65534", "--clear-groups"]
CONTAINERS_ROOT = ["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]  # it may not mount


@contextlib.contextmanager
def folder_for_all() -> Iterator[Path]:
    """A folder that another user reaches, holding the package's sandboxes."""
    folder = Path(tempfile.mkdtemp(prefix="cqd-hub-user-", dir="/tmp"))
    folder.chmod(0o755)
    source = Path(cqd_hub.__file__).parent
    package = folder / "code" / "cqd_hub" / "evaluation"
    shutil.copytree(
        source / "evaluation" / "sandbox",
        package / "sandbox",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copy(source / "errors.py", package.parent / "errors.py")
    for place in (package, package.parent):
        (place / "__init__.py").touch()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run_as(who: list[str], folder: Path, code: str) -> list[str]:
    """Run *code* as another user with the sandboxes of *folder*; return the lines it prints."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    version = python and subprocess.run(
        [python, "-c", "import sys; print(sys.version_info >= (3, 11))"],
        capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    if version != "True":
        pytest.skip("no python3 >= 3.11 that another user can reach")
    script = folder / "main.py"
    script.write_text(code)
    done = subprocess.run(
        ["setpriv", *who, str(python), script],
        capture_output=True,
        text=True,
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder / "code")},
        timeout=120,
    )
    assert done.stdout, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("who", [ORDINARY, CONTAINERS_ROOT], ids=["ordinary", "containers-root"])
@pytest.mark.parametrize("kind", WARM)
def test_other_users(kind: str, who: list[str]) -> None:
    """The same verdicts when started by a user with fewer privileges (needs root to become one)."""
    script = f"""
import asyncio
from cqd_hub.evaluation.sandbox import *
async def main():
    async with await open_sandbox({kind!r}, workers=1) as sandbox:
        limits = Limits(cpu_seconds=0.5, wall_seconds=2.0)
        good = PythonCall("def f(x): return 2 * x", "f", ((21,),))
        for program in (
            good,
            PythonCall("def f():\\n while True: pass", "f", ((),)),
            ShellScript("b() {{ b | b & b; }}; b"),
            ShellScript("(setsid sleep 1000 &); mkdir a; echo x > a/b; chmod 0 a; kill -9 -1"),
            PythonCall("def f(): return len(bytearray(10 ** 9))", "f", ((),)),
        ):
            outcome = await sandbox.run(program, limits)
            again = await sandbox.run(good)
            print(outcome.status.value, again.value)
        outcome = await sandbox.run(ShellScript("unshare -U true && echo nested; cat /etc/shadow"))
        print(repr(outcome.value["stdout"]))
asyncio.run(main())
"""
    with folder_for_all() as folder:
        lines = run_as(who, folder, script)
    assert all(line.endswith("[{'ok': 42}]") for line in lines[:-1]), lines
    states = [line.rpartition(" [")[0] for line in lines[:-1]]
    assert (states[0], states[1], states[4]) == ("finished", "cpu limit", "memory limit")
    assert lines[-1] == "''"


ATTACK = """
import ctypes, fcntl, os
def attempt(action):
    try:
        return repr(action())
    except Exception as error:
        return type(error).__name__
def f(home, file, python, launcher):
    libc = ctypes.CDLL(None, use_errno=True)
    def raw(number, *arguments):
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), "raw")
    library = os.open(python, os.O_RDONLY)
    return [attempt(action) for action in (
        lambda: os.chmod(home, 0), lambda: os.chmod(file, 0), lambda: os.fchmod(library, 0),
        lambda: raw(452, -100, file.encode(), 0, 0),
        lambda: os.chown(file, os.getuid(), os.getgid()),
        lambda: os.fchown(library, os.getuid(), os.getgid()),
        lambda: os.utime(file, (1, 1)), lambda: os.utime(file), lambda: os.utime(library, (1, 1)),
        lambda: os.setxattr(file, "user.a", b"1"), lambda: os.removexattr(file, "user.was"),
        lambda: os.truncate(file, 0), lambda: os.open(file, os.O_TRUNC),
        lambda: os.setpriority(os.PRIO_PROCESS, launcher, 7),
        lambda: os.sched_setaffinity(launcher, {min(os.sched_getaffinity(0))}),
        lambda: os.sched_setscheduler(launcher, os.SCHED_BATCH, os.sched_param(0)),
        lambda: fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, launcher),
        lambda: fcntl.ioctl(library, 0x40086602, b"\\1" + bytes(7)),
    )]
"""


@pytest.mark.parametrize("kind", WARM)
def test_ordinary_users_files_and_processes(kind: str) -> None:
    """What Landlock does not govern is closed as well: the answer has the launcher's user id."""
    script = f"""
import asyncio, os
from cqd_hub.evaluation.sandbox import *
def state():
    files = [os.stat(path) for path in (home, file, python)]
    return [
        [(one.st_mode, one.st_mtime_ns, one.st_ctime_ns, one.st_size) for one in files],
        os.listxattr(file), open(file).read(), os.getpriority(os.PRIO_PROCESS, 0),
        sorted(os.sched_getaffinity(0)), os.sched_getscheduler(0),
    ]
async def main():
    async with await open_sandbox({kind!r}, workers=1) as sandbox:
        before = state()
        call = PythonCall({ATTACK!r}, "f", ((home, file, os.__file__, os.getpid()),))
        outcome = await sandbox.run(call)
        print(before == state())
        print(*outcome.value[0].get("ok", [outcome.value]))
        script = "touch new && echo made; cp new copy && sed -i s/x/y/ copy && mv copy last; ls"
        print(*(await sandbox.run(ShellScript(script))).value["stdout"].split())
home = {{home!r}}
file = home + "/token"
python = os.__file__
asyncio.run(main())
"""
    with folder_for_all() as folder:
        home = folder / "home"
        home.mkdir()
        token = home / "token"
        token.write_text("hf_secret")
        token.chmod(0o600)
        os.setxattr(token, "user.was", b"here")
        for path in (home, token):
            os.chown(path, 65534, 65534)
        lines = run_as(ORDINARY, folder, script.replace("{home!r}", repr(str(home))))
    assert lines[0] == "True", lines
    assert lines[2] == "made last new"
    if kind == "landlock":
        assert set(lines[1].split()) == {"PermissionError"}, lines[1]


def test_looking_for_sandboxes_inside_a_loop() -> None:
    async def main() -> set[str]:
        return {state.kind for state in available() if state.ok and state.kind != "docker"}

    assert asyncio.run(main()) == set(WARM)


def test_a_sandbox_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho no namespaces here >&2; exit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    state = available()[0]
    assert (state.kind, state.ok) == ("bubblewrap", False)
    assert state.why_not
    assert "user namespaces" in state.remedy
    with pytest.raises(UserError, match="bubblewrap: "):
        asyncio.run(open_sandbox("bubblewrap"))


def test_docker_clients_proxies() -> None:
    """The client sets the variables of its configuration unless the command names them."""
    words = ("http", "https", "ftp", "all", "no")
    names = [name for word in words for name in (f"{word}_proxy", f"{word}_proxy".upper())]
    command = _docker_run("name", "image", dataclasses.asdict(Limits()))
    given = [value for flag, value in itertools.pairwise(command) if flag == "--env"]
    assert set(given) >= {f"{name}=" for name in names}


def test_nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt install bubblewrap"):
        asyncio.run(open_sandbox("bubblewrap"))
    with pytest.raises(UserError, match="docker is not installed"):
        asyncio.run(open_sandbox("docker"))
    assert {state.kind for state in available() if not state.ok} >= {"bubblewrap", "docker"}


def test_auto_takes_the_best() -> None:
    async def main() -> None:
        async with await open_sandbox() as sandbox:
            assert sandbox.kind == WARM[0]
            assert sandbox.guarantees.startswith(WARM[0])

    asyncio.run(main())


def test_looking_for_sandboxes_is_light() -> None:
    code = (
        "import sys; from cqd_hub.evaluation.sandbox import available; available();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'lm_eval')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
