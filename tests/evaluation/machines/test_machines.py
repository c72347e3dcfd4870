"""What machines do for those who play fair: state, scripts, time, replacement, opening."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

import cqd_hub
from cqd_hub.errors import UserError
from cqd_hub.evaluation.machines import (
    Machine,
    MachineLost,
    Machines,
    available_machines,
    open_machines,
)
from cqd_hub.evaluation.machines._docker import docker_run
from cqd_hub.evaluation.sandbox.box import groups

from .conftest import LIMITS, SERVER, Box, image_for_tests
from .test_hostile import gone, processes_holding


def with_machines(action: Callable[[Machines], Awaitable[None]]) -> None:
    async def main() -> None:
        machines = await open_machines("bubblewrap", image=image_for_tests().folder)
        try:
            await action(machines)
        finally:
            await machines.close()

    asyncio.run(main())


def test_the_shell_keeps_its_state(box: Box) -> None:
    assert box.shell("cd /tmp; f() { return 3; }; x='a b'; f").text == ""
    assert box.shell('echo $? "$x" $PWD').text == "3 a b /tmp\n"
    assert box.shell("echo out; echo error >&2; echo out").text == "out\nerror\nout\n"
    assert box.shell("cat; read line; echo $?").text == "1\n"
    assert box.shell("false\necho $?\n\n(exit 4)").text == "1\n"
    assert box.shell("echo $?").text == "4\n"
    assert box.shell("sleep 30 | head -c 1 & true").text.startswith("[1] ")
    assert "Running" in box.shell("jobs").text


def test_the_shell_is_a_login_shell(box: Box) -> None:
    assert box.shell("shopt -q login_shell; echo $? $0 $HOME $PWD $-").text.startswith(
        "0 /bin/bash /root /root "
    )
    assert box.shell("id -u; whoami; hostname; cat /etc/hostname").text == "0\nroot\nbox\nbox\n"
    box.run("echo 'alias later=true' >> /root/.bashrc")
    assert "alias" not in box.shell("type later").text  # it was there before


@pytest.mark.parametrize(
    ("command", "ended"),
    [("sleep 60", "time"), ("while :; do :; done", "time"), ("yes", "output"), ("exit", "shell")],
)
def test_how_a_command_ended(box: Box, command: str, ended: str) -> None:
    box.shell("kept=1")
    assert box.shell(command, 3 if ended == "output" else 0.5).ended in (ended, "time")
    assert box.shell("echo $kept").text == ("\n" if ended == "shell" else "1\n")


def test_scripts(box: Box) -> None:
    ran = box.run('echo "$0|$1|$2|$#|$PWD"; echo e >&2; exit 9', parameters=["a b", ""])
    assert ran == (9, "--|a b||2|/\n", "e\n")
    script = "import os, sys\nprint(sys.argv[1:], os.getcwd())\nsys.exit('no')"
    assert box.run(script, "python", ["é"]) == (1, "['é'] /\n", "no\n")
    assert box.run("if") == (2, "", box.run("if").stderr)
    assert box.run("x=1; cd /tmp").exit_code == 0
    assert box.shell("echo $PWD$x").text == "/root\n"


def test_what_a_script_leaves_behind(box: Box) -> None:
    """It ends with its own process, and the rest goes on, its output too."""
    began = time.monotonic()
    script = "(for i in 1 2 3 4 5; do echo $i; echo $i >> /tmp/seen; sleep 0.1; done) & echo on"
    assert box.run(script).exit_code == 0
    assert time.monotonic() - began < 3
    wait = "for _ in $(seq 100); do [ $(wc -l < /tmp/seen) = 5 ] && break; sleep 0.1; done"
    assert box.run(f"{wait}; tail -1 /tmp/seen").stdout == "5\n"


def test_owners_and_packages(box: Box) -> None:
    if box.kind == "one-id":
        pytest.skip("no second user where there is one id")
    script = "useradd -m ann && chown ann /tmp && chmod 4711 /tmp"
    assert box.run(f"{script} && su ann -c 'id -un; stat -c %U%a /tmp'").stdout == "ann\nann4711\n"
    assert box.run("command -v sudo").exit_code == 1
    assert box.run("apt update && apt install -y sudo && sudo -u ann id -un").stdout.endswith(
        "ann\n"
    )
    assert box.run("find / -name nothing-like-it").exit_code == 0


def test_a_machine_has_its_time(box: Box) -> None:
    box.close()
    box.start(replace(LIMITS, machine_seconds=1.0))
    with pytest.raises(MachineLost, match="over its 1 s"):
        box.shell("sleep 60", 30)
    with pytest.raises(MachineLost, match="over its 1 s"):
        box.run("true")
    box.close()
    box.start()
    assert box.shell("echo on").text == "on\n"


def test_limits_of_the_next_machine(box: Box) -> None:
    box.close()
    box.start(replace(LIMITS, output_bytes=10, disk_mb=8))
    assert box.shell("seq 100").text == "1\n2\n3\n4\n5\n"
    script = "for f in a b; do head -c 6000000 /dev/zero > /tmp/$f || exit 1; done"
    assert box.run(script).exit_code == 1
    box.close()
    box.start()
    assert box.run(script).exit_code == 0


def test_what_is_said_of_them(machines: Box) -> None:
    assert machines.guarantees.isprintable()
    single = any("one user id" in note for note in machines.notes)
    assert single is (machines.kind == "one-id")


def test_many_at_once() -> None:
    async def one(machines: Machines, number: int) -> None:
        async with await machines.start(LIMITS) as machine:
            await machine.shell(f"echo {number} > /root/mine")
            await asyncio.sleep(0.1)
            assert (await machine.run("cat /root/mine; ls /root")).stdout == f"{number}\nmine\n"

    async def main(machines: Machines) -> None:
        await asyncio.gather(*(one(machines, number) for number in range(6)))

    with_machines(main)


def test_a_cancelled_command() -> None:
    async def main(machines: Machines) -> None:
        machine = await machines.start(LIMITS)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(machine.shell("sleep 60"), 0.3)
        with pytest.raises(MachineLost, match="given up"):
            await machine.shell("echo on")
        await machine.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(machines.start(replace(LIMITS, files=999)), 0.01)
        async with await machines.start(LIMITS) as machine:
            assert (await machine.shell("echo on")).text == "on\n"

    with_machines(main)


async def until_lost(machine: Machine) -> None:
    for _ in range(1000):
        await machine.shell("sleep 0.01")


def test_a_killed_launcher() -> None:
    async def main(machines: Machines) -> None:
        word = f"orphan{os.getpid()}"
        machine = await machines.start(LIMITS)
        await machine.run(f"(bash -c ': {word}; sleep 60; :' &) >/dev/null 2>&1")
        assert processes_holding(word)
        os.kill(machine._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        with pytest.raises(MachineLost):
            await until_lost(machine)
        await machine.close()
        assert await asyncio.to_thread(gone, word)
        async with await machines.start(LIMITS) as machine:
            assert (await machine.shell("echo on")).text == "on\n"

    with_machines(main)


def test_a_killed_run() -> None:
    """Nothing of a machine outlives the process that opened it."""
    word = f"survivor{os.getpid()}"
    process = subprocess.Popen(
        [sys.executable, str(SERVER), "bubblewrap", str(image_for_tests().folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cqd_hub.__file__).parents[1])},
    )  # fmt: skip
    box = Box("bubblewrap", process)
    box.start()
    box.run(f"(setsid bash -c ': {word}; sleep 600; :' &) >/dev/null 2>&1")
    assert processes_holding(word)
    process.kill()
    process.communicate()
    assert gone(word)


def test_control_groups_are_removed() -> None:
    made = groups.make({"memory_mb": 100, "disk_mb": 10, "processes": 10})
    if not made:
        pytest.skip("no control group can be made here")
    assert all(Path(folder).is_dir() for folder in made)
    groups.remove(made)
    assert not any(Path(folder).exists() for folder in made)

    async def main(machines: Machines) -> None:
        parents = {Path(folder).parent for folder in made}

        def count() -> int:
            return sum(len(list(parent.glob("cqd-hub-machine-*"))) for parent in parents)

        machine = await machines.start(LIMITS)
        await machine.close()
        await machines.close()
        own = f"cqd-hub-machine-{machine._process.pid}-*"  # type: ignore[attr-defined]
        assert not any(list(parent.glob(own)) for parent in parents), count()

    with_machines(main)


def test_control_groups_of_version_2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The nearest group above that hands memory and processes down."""
    own = tmp_path / "user.slice" / "session.scope"
    own.mkdir(parents=True)
    for folder, controllers in (
        (own, ""),
        (own.parent, "cpu memory pids"),
        (tmp_path, "cpu memory pids"),
    ):
        (folder / "cgroup.subtree_control").write_text(controllers)
    monkeypatch.setattr(groups, "_mounts", lambda: {"": ("/", str(tmp_path))})
    monkeypatch.setattr(groups, "_own", lambda: {"": "/user.slice/session.scope"})
    ((parent, bounds),) = groups._parents(1 << 20, 7)
    assert parent == str(own.parent)
    assert ("memory.max", 1 << 20, True) in bounds
    assert ("pids.max", 7, True) in bounds
    (own.parent / "cgroup.subtree_control").write_text("cpu")
    (tmp_path / "cgroup.subtree_control").write_text("cpu")
    with pytest.raises(OSError, match="no controllers"):
        groups._parents(1 << 20, 7)


def test_without_a_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "make", lambda limits: [])
    notes: list[str] = []

    async def main() -> None:
        image = image_for_tests().folder
        machines = await open_machines("bubblewrap", image=image, note=notes.append)
        async with await machines.start(LIMITS) as machine:
            ran = await machine.run("x = bytearray(10 ** 9)", language="python")
            assert "MemoryError" in ran.stderr
            assert (await machine.shell("echo on")).text == "on\n"
        await machines.close()
        assert "per process only" in machines.guarantees

    asyncio.run(main())
    assert "total memory is not bounded" in notes[0]


# opening


def opening(**options: str) -> str:
    with pytest.raises(UserError) as caught:
        asyncio.run(open_machines(**options))  # type: ignore[arg-type]
    return str(caught.value)


def test_nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt install bubblewrap" in opening()
    assert "docker is not installed" in opening(kind="docker")
    assert [state.ok for state in available_machines()] == [False, False]


def test_no_user_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image = str(image_for_tests().folder)
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho no namespaces here >&2; exit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    message = opening(image=image)
    assert "no machine can be started" in message
    assert "user namespaces" in message or "seccomp=unconfined" in message
    assert "\n" not in message


def test_no_such_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\necho Cannot connect >&2; exit 1\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "no engine answers" in opening(kind="docker")
    (tmp_path / "docker").write_text("#!/bin/sh\necho 'Error: No such image: x' >&2; exit 1\n")
    assert "cqd-hub sandbox build --docker x" in opening(kind="docker", image="x")
    (tmp_path / "docker").write_text("#!/bin/sh\necho 0123\n")
    assert "of another version" in opening(kind="docker", image="x")


def test_dockers_command_names_proxies_and_no_network() -> None:
    command = docker_run("name", "image", LIMITS)
    assert "http_proxy=" in command
    assert command[command.index("--network") + 1] == "none"
    assert not any("docker.sock" in word or word in ("-v", "--volume") for word in command)


def test_opening_is_light() -> None:
    code = (
        "import sys; from cqd_hub.evaluation.machines import available_machines;"
        "available_machines();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'lm_eval')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_closing_while_one_is_started_ahead() -> None:
    async def main(machines: Machines) -> None:
        for pause in (0.0, 0.001, 0.003, 0.01, 0.03, 0.1):
            for _ in range(3):
                await (await machines.start(LIMITS)).close()
                await asyncio.sleep(pause)
                async with asyncio.timeout(30):
                    await machines.close()

    with_machines(main)
