"""Workers: concurrency, replacement, cancellation, ordinary users, machines without anything."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
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

from .conftest import GOOD

WARM = [state.kind for state in available() if state.ok and state.kind != "docker"]
pytestmark = pytest.mark.skipif(not WARM, reason="neither bubblewrap nor landlock works here")


def children() -> list[int]:
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(word) for word in path.read_text().split()]


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
                os.kill(worker, signal.SIGKILL)
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


@pytest.mark.parametrize("who", [ORDINARY, CONTAINERS_ROOT], ids=["ordinary", "containers-root"])
@pytest.mark.parametrize("kind", WARM)
def test_other_users(kind: str, who: list[str]) -> None:
    """The same verdicts when started by a user with fewer privileges (needs root to become one)."""
    if os.geteuid() != 0:
        pytest.skip("already an ordinary user: the other tests show it")
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    version = python and subprocess.run(
        [python, "-c", "import sys; print(sys.version_info >= (3, 11))"],
        capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    if version != "True":
        pytest.skip("no python3 >= 3.11 that another user can reach")
    copy = Path("/tmp") / f"cqd-hub-user-{os.getpid()}"
    source = Path(cqd_hub.__file__).parent
    package = copy / "cqd_hub" / "evaluation"
    shutil.copytree(
        source / "evaluation" / "sandbox",
        package / "sandbox",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copy(source / "errors.py", copy / "cqd_hub" / "errors.py")
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    script = copy / "main.py"
    script.write_text(f"""
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
""")
    try:
        done = subprocess.run(
            ["setpriv", *who, python, script],
            capture_output=True,
            text=True,
            cwd="/",
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(copy)},
            timeout=120,
        )
    finally:
        shutil.rmtree(copy)
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    assert all(line.endswith("[{'ok': 42}]") for line in lines[:-1]), lines
    states = [line.rpartition(" [")[0] for line in lines[:-1]]
    assert (states[0], states[1], states[4]) == ("finished", "cpu limit", "memory limit")
    assert lines[-1] == "''"


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
