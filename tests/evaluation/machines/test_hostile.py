"""Agents that attack: each is refused, and the next command, or the next machine, works."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cqd_hub.evaluation.machines import MachineLost
from cqd_hub.evaluation.sandbox import printable

from .conftest import LIMITS, SECRET, Box


@pytest.fixture(autouse=True)
def _next_one_unharmed(box: Box) -> Iterator[None]:
    yield
    box.close()
    box.start()
    assert box.shell("cd /etc; echo $((6 * 7)) $PWD").text == "42 /etc\n"
    assert box.run("echo $1; cat /root/left 2>/dev/null", parameters=["a"]) == (1, "a\n", "")
    assert box.shell("echo $OLDPWD $PWD").text == "/root /etc\n"


def lost_or_right(box: Box) -> None:
    """The machine is lost, or goes on as if nothing had been."""
    with contextlib.suppress(MachineLost):
        assert box.run("echo on").stdout == "on\n"


def processes_holding(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if word in text:
            found.append(text)
    return found


def gone(word: str) -> bool:
    deadline = time.monotonic() + 10
    while processes_holding(word) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not processes_holding(word)


# limits


def test_fork_bomb(box: Box) -> None:
    marker = f"bomb{os.getpid()}"
    with contextlib.suppress(MachineLost):  # where no process at all can be started
        box.shell(f": {marker}; b() {{ b | b & b; }}; b", 2)
        count = box.run("ls -d /proc/[0-9]* | wc -l").stdout
        assert not count or int(count) <= LIMITS.processes + 3
    box.close()
    assert gone(marker)


def test_number_of_processes(box: Box) -> None:
    script = """
import os, time
born = 0
try:
    while born < 200:
        if os.fork() == 0:
            time.sleep(30); os._exit(0)
        born += 1
except OSError:
    print(born)
"""
    assert int(box.run(script, "python").stdout) <= LIMITS.processes
    lost_or_right(box)


def test_filling_the_disk(box: Box) -> None:
    places = "/ /tmp /root /dev/shm /run /var/lib /home"
    script = (
        f"for d in {places}; do for i in 1 2 3; do"
        " head -c 20000000 /dev/zero > $d/f$i; done; done 2>&1 | grep -c 'No space';"
        "du -cm $(find / -xdev -name 'f[123]') /dev/shm /run | tail -1 | cut -f1; rm -f /f?"
    )
    full, taken = box.run(script).stdout.split()
    assert int(full) > 10
    assert int(taken) <= LIMITS.disk_mb + 1
    assert box.run("rm -f /*/f? /*/*/f?; echo x > /root/y && cat /root/y").stdout == "x\n"


def test_many_files(box: Box) -> None:
    script = """
import os
made = 0
for place in ("/tmp", "/dev/shm", "/run"):
    try:
        while made < 50_000:
            open(f"{place}/f{made}", "w").close()
            made += 1
    except OSError:
        pass
print(made)
"""
    assert 1000 < int(box.run(script, "python").stdout) <= LIMITS.files + 8
    lost_or_right(box)


def test_devices_hold_nothing(box: Box) -> None:
    text = box.run("for d in /dev /proc /sys /proc/1; do echo x > $d/new; done; true")
    assert len(re.findall("Read-only|denied|No such file|Permission", text.stderr)) >= 3
    assert box.run("echo x > /dev/new").exit_code != 0


def test_one_large_file(box: Box) -> None:
    done = box.run("truncate -s 10G /tmp/x; echo $?; dd if=/dev/zero of=/tmp/y bs=1M count=500")
    assert done.stdout != "0\n"
    assert box.run("stat -c %s /tmp/y").stdout.strip() <= str(LIMITS.disk_mb << 20)


@pytest.mark.parametrize("command", ["yes", "cat /dev/zero", "while :; do echo y; done"])
def test_endless_output(box: Box, command: str) -> None:
    printed = box.shell(command, 4)
    assert printed.ended in ("output", "time")
    assert len(printed.text) == LIMITS.output_bytes
    ran = box.run(f"{command} & {command} >&2")
    assert (ran.exit_code, len(ran.stdout), len(ran.stderr)) == (None, 10_000, 10_000)
    assert box.shell("echo on").text == "on\n"


def test_output_in_the_background(box: Box) -> None:
    assert box.shell("(yes & yes >&2 &); echo on", 3).ended == ""
    # Late, it has written more than a command may by now.
    assert box.shell("pkill yes; sleep 0.1").ended in ("", "output")
    assert box.shell("echo on").text.endswith("on\n")


def test_memory_hog(box: Box) -> None:
    done = box.run("x = bytearray(10 ** 9); print(len(x))", "python")
    assert done.exit_code != 0
    assert done.stdout == ""
    lost_or_right(box)


HOGS = """
import os, time
for _ in range(8):
    if os.fork() == 0:
        hold = b"x" * (60 << 20)
        time.sleep(60)
time.sleep(3)
alive = [p for p in os.listdir("/proc") if p.isdigit() and p != "1"]
total = 0
for p in alive:
    try:
        total += int(open(f"/proc/{p}/statm").read().split()[1]) * 4096
    except OSError:
        pass
print(total >> 20)
"""


def test_memory_of_all_processes(box: Box) -> None:
    most = LIMITS.memory_mb + LIMITS.disk_mb + 64
    try:
        done = box.run(HOGS, "python")
    except MachineLost:
        return
    if "total memory is not bounded" in " ".join(box.notes):
        assert done.exit_code == 0  # as is said when machines are opened
    else:
        assert done.exit_code != 0 or int(done.stdout) <= most + 20
    lost_or_right(box)


def test_memory_that_is_no_process(box: Box) -> None:
    script = """
import ctypes, os
libc = ctypes.CDLL(None)
print(libc.memfd_create(b"x", 0), libc.shmget(0, 1 << 30, 0o1600), libc.msgget(0, 0o1600))
"""
    assert box.run(script, "python").stdout == "-1 -1 -1\n"


@pytest.mark.parametrize("command", ["while :; do :; done", "sleep 1000", "cat /dev/tty; cat"])
def test_taking_for_ever(box: Box, command: str) -> None:
    box.shell("here=kept; cd /tmp")
    began = time.monotonic()
    if box.shell(command, 1).ended:
        assert time.monotonic() - began < 15
    assert box.shell("echo $here $PWD").text == "kept /tmp\n"
    code, *_ = box.run(f"{command}; sleep 1000")
    busy = command.startswith("while")
    assert code is None or (busy and code == -signal.SIGKILL)  # alone, its CPU time ends first


def test_cpu_time(box: Box) -> None:
    began = time.monotonic()
    done = box.run("(while :; do :; done) & wait $!; echo $?", parameters=[])
    assert time.monotonic() - began < 15
    assert done.stdout.strip() in ("137", "152", "")


def test_refusing_to_be_interrupted(box: Box) -> None:
    for command in ("trap '' INT TERM HUP; while :; do :; done", "kill -STOP $$"):
        assert box.shell(command, 1).ended == "time"
        assert box.shell("echo $((40 + 2))").text == "42\n"


# processes


def test_daemon_lives_until_the_machine_ends(box: Box) -> None:
    name = f"daemon{os.getpid()}"
    box.run(f"setsid nohup bash -c 'trap \"\" TERM HUP; : {name}; while :; do sleep 5; done' &")
    listing = "cat /proc/*/cmdline | tr '\\0' ' '"
    for _ in range(50):  # a process that is just being replaced by its program shows no line
        if name in (lines := box.run(listing).stdout):
            break
    assert name in lines
    box.close()
    assert gone(name)


def test_killing_everybody(box: Box) -> None:
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        for command in (
            "kill -9 -1; echo on",
            f"kill -9 {victim.pid} 1; kill -STOP 1; kill -INT 1; kill -SEGV 1; echo on",
            "kill -9 $$",
            "kill -9 $PPID; for s in $(seq 64); do kill -$s 1; done 2>/dev/null",
        ):
            box.shell(command)
            assert box.shell("echo on").text == "on\n"
            assert box.run("kill -9 -1; echo on").stdout == "on\n"
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_the_first_process_is_closed(box: Box) -> None:
    script = """
import ctypes, os, resource
libc = ctypes.CDLL(None)
def attempt(action):
    try:
        return repr(action())
    except OSError as error:
        return type(error).__name__
print(libc.ptrace(16, 1, 0, 0), libc.process_vm_readv(1, 0, 0, 0, 0, 0), *(
    attempt(action) for action in (
        lambda: resource.prlimit(1, resource.RLIMIT_CPU, (0, 0)),
        lambda: open("/proc/1/mem", "r+b"),
        lambda: os.open("/proc/1/fd/1", os.O_WRONLY),
        lambda: open("/proc/1/environ").read(),
        lambda: os.rmdir("/proc/1"),
    )
))
"""
    words = box.run(script, "python").stdout.split()
    assert words[:2] == ["-1", "-1"]
    assert set(words[2:]) <= {"PermissionError", "FileNotFoundError", "OSError"}


# the host


def test_host_files(box: Box, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("hf_very_secret")
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    names = [
        str(secret), f"/proc/1/root{secret}", f"/proc/1/cwd{secret}", __file__,
        "/var/run/docker.sock", "/run/docker.sock", "/root/.cache/huggingface/token",
        os.path.expanduser("~/.cache/huggingface/token"), "/root/.ssh", "/sys/class/net/eth0",
        "/dev/sda", "/dev/vda", "/dev/mem", "/dev/kmsg", "/dev/kvm", "/dev/fuse",
    ]  # fmt: skip
    script = "import os, sys\nprint([p for p in sys.argv[1:] if os.path.lexists(p)])"
    assert box.run(script, "python", parameters=names).stdout == "[]\n"
    found = box.run("grep -rl hf_very_secret /tmp /root /home /etc /run /mnt /opt /dev/shm").stdout
    assert found == ""
    mounts = box.run("cat /proc/self/mountinfo").stdout
    assert not any(word in mounts for word in ("/root/", "/home/", "cqd-hub", str(tmp_path)))


def test_launchers_environment(box: Box) -> None:
    text = box.run("env; cat /proc/*/environ /proc/*/cmdline; set").stdout
    text += box.shell("env; cat /proc/*/environ /proc/*/cmdline; set").text
    assert SECRET not in text
    assert "SECRET_TOKEN" not in text
    assert "CQD_HUB" not in text
    assert "proxy" not in text.lower()


def test_another_machine(box: Box) -> None:
    """Neither its files nor its processes; a changed system is changed for one machine only."""
    word = f"answer{os.getpid()}"
    box.run(f"echo {word} | tee /root/left /tmp/left /dev/shm/left /run/left /opt/left")
    box.run(f"(bash -c ': {word}; sleep 60; :' &) >/dev/null 2>&1")
    box.run("printf '#!/bin/sh\\necho forged\\n' > /usr/bin/python3; rm -rf /usr/lib/python3*")
    box.run("cp /bin/true /bin/bash; chmod 0 /etc/passwd")
    first = box.machine
    second = box.start()
    assert first != second
    script = "find / -xdev -name left; find /dev/shm /run -name left; ps -ef; id -un"
    printed = box.run(script).stdout
    assert "/left" not in printed
    assert word not in printed
    assert printed.endswith("root\n")
    assert box.run("print(6 * 7)", "python").stdout == "42\n"


def test_network(box: Box) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        script = f"""
import socket
def attempt(action):
    try:
        action()
        return "worked"
    except OSError as error:
        return type(error).__name__
print(
    attempt(lambda: socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), 1)),
    attempt(lambda: socket.create_connection(("192.0.2.1", 80), 1)),
    attempt(lambda: socket.create_connection(("169.254.169.254", 80), 1)),
    attempt(lambda: socket.getaddrinfo("example.org", 80)),
    attempt(lambda: socket.socket(socket.AF_VSOCK)),
    attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    attempt(lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)),
    attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
    attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)),
)
own = socket.create_server(("127.0.0.1", 0))
print(attempt(lambda: socket.create_connection(own.getsockname(), 1)))
"""
        refused, own = box.run(script, "python").stdout.splitlines()
        assert "worked" not in refused, refused
        assert len(refused.split()) == 9
        assert own == "worked"
        with pytest.raises(BlockingIOError):  # nobody has come
            server.accept()
    assert box.run("ls /sys/class/net; tail -n +3 /proc/net/dev | cut -d: -f1").stdout.split() in (
        ["lo"],
        ["lo", "lo"],
    )


# the kernel


def test_kernel_doors_are_shut(box: Box) -> None:
    script = """
import ctypes, os, platform
calls = {"unshare_user": (272, 97, 0x10000000), "mount": (165, 40, 0, 0, 0, 0, 0),
         "umount": (166, 39, b"/proc/1", 2), "chroot": (161, 51, b"/tmp"),
         "pivot": (155, 41, b"/tmp", b"/tmp"), "mount_setattr": (442, 442, -100, b"/dev", 0, 0, 0),
         "keyctl": (250, 219, 0, 0), "bpf": (321, 280, 0, 0, 0), "userfaultfd": (323, 282, 0),
         "perf": (298, 241, 0, 0, 0, 0, 0), "io_uring": (425, 425, 1, 0),
         "clone_user": (56, 220, 0x10000011, 0, 0, 0, 0), "setns": (308, 268, 0, 0),
         "reboot": (169, 142, 0, 0, 0), "settime": (227, 112, 0, 0), "module": (175, 105, 0, 0, 0),
         "handle": (304, 265, 0, 0, 0), "syslog": (103, 116, 3, 0, 0)}
libc = ctypes.CDLL(None, use_errno=True)
for name, (x86, other, *rest) in calls.items():
    value = libc.syscall(other if platform.machine() == "aarch64" else x86, *rest)
    if name == "clone_user" and value == 0:
        os._exit(0)
    if (value, ctypes.get_errno()) != (-1, 1):
        print(name, value, ctypes.get_errno())
print(libc.syscall(435, 0, 0), ctypes.get_errno())
"""
    assert box.run(script, "python").stdout == "-1 38\n"
    script = (
        "unshare -U true; unshare -m true; mount -t tmpfs x /mnt; mount -o remount,rw /dev;"
        "umount /proc/1; mknod d b 8 0; echo b > /proc/sysrq-trigger; date -s @0; hostname x;"
        "echo 1 > /proc/sys/kernel/core_pattern; chroot / true; dmesg"
    )
    assert len(box.run(script).stderr.splitlines()) >= 12
    assert abs(float(box.run("date +%s").stdout) - time.time()) < 60


def test_capabilities(box: Box) -> None:
    """Fewer than Docker gives, and none comes back."""
    script = "grep ^Cap /proc/self/status; grep ^NoNewPrivs /proc/self/status"
    lines = dict(line.split() for line in box.run(script).stdout.splitlines())
    dockers = 0x00000000A80425FB
    for name in ("CapPrm:", "CapEff:", "CapBnd:"):
        assert int(lines[name], 16) & ~dockers == 0, (name, lines)
    assert lines["NoNewPrivs:"] == "1"


def test_setuid_programs_give_nothing(box: Box) -> None:
    if box.kind == "one-id":
        pytest.skip("no second user where there is one id")
    box.run("useradd jack; cp /usr/bin/id /usr/local/bin/i; chmod 4755 /usr/local/bin/i")
    assert "euid=0" not in box.run("su jack -c /usr/local/bin/i").stdout
    assert box.run("su jack -c 'cat /etc/shadow; su -c id root </dev/null'").stdout == ""


# what is printed


def test_output_that_imitates_ours(box: Box) -> None:
    commands = (
        "echo lie.1 0; echo lie.2 0",
        "for i in $(seq 200); do echo lie.$i 0 >&247; done",
        "head -c 200000 /dev/urandom >&247",
        "printf '\\0\\0\\0\\2{}' | tee /dev/stderr",
        "printf '{\"lost\": \"x\"}'; printf '\\0\\0\\0\\xff'",
    )
    for command in commands:
        assert box.shell(command, 3).ended == ""
        assert box.shell("echo next").text == "next\n"


@pytest.mark.parametrize(
    "command",
    [
        "exec 247>&-",
        "exec >/dev/null 2>&1",
        "exec </dev/null; exec bash",
        "exit 7",
        "exec sleep 0",
        "builtin() { :; }; eval() { :; }; printf() { :; }; enable -n eval printf builtin",
        "set -euo pipefail; false",
        "PS1='$(sleep 9)'; PS2=x; PROMPT_COMMAND='sleep 9'; trap 'sleep 9' DEBUG",
        "alias echo=false; readonly PS1 PS2 2>/dev/null; unset PATH",
        "${x?} $(( 1 / 0 )) ((",
        "cat <<EOF",
        "' \" \\ ! !! $'x' `",
    ],
)
def test_breaking_the_shell(box: Box, command: str) -> None:
    """Whatever became of the shell, the machine goes on, at worst with a new one."""
    box.shell(command, 1)
    for _ in range(3):
        if box.shell("\\echo on", 1).text == "on\n":
            break
        box.shell("kill -9 $$", 1)
    else:
        pytest.fail("no shell works")
    assert box.run("echo on").stdout == "on\n"


def test_bytes_that_are_not_text(box: Box) -> None:
    text = box.shell(r"printf '\xff\xfe\x00a'; printf '\x1b]0;owned\x07\x1b[2J'").text
    assert text == "\ufffd\ufffd\0a\x1b]0;owned\x07\x1b[2J"
    assert printable(text).isprintable()
    ran = box.run(r"printf '\xc3'; printf '\xc3' >&2; exit 3")
    assert ran == (3, "\ufffd", "\ufffd")
    assert box.shell("echo a\0b $'\\ud800' '\x1b[0m' \ud800").text.startswith("ab ")


def test_endless_names_and_arguments(box: Box) -> None:
    assert box.run("echo ${#1}", parameters=["x" * 100_000]).stdout == "100000\n"
    assert box.run("true", parameters=["x" * 300_000]).exit_code == 126
    assert box.shell(f"x={'y' * 200_000}; echo ${{#x}}").text == "200000\n"
    script = "import os\nfor _ in range(900):\n os.mkdir('d')\n os.chdir('d')"
    box.run(f"import os; os.chdir('/tmp')\n{script}", "python")
    assert box.shell("echo on").text == "on\n"
