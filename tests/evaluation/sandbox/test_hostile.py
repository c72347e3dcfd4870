"""Answers that attack: each is refused, and the next answer gets its right verdict."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cqd_hub.evaluation.sandbox import Limits, PythonCall, ShellScript, SqlQuery, Status

from .conftest import Box

SHORT = Limits(cpu_seconds=0.5, wall_seconds=2.0)


def call(code: str) -> PythonCall:
    return PythonCall(code, "f", ((),))


@pytest.fixture(autouse=True)
def _next_answer_unharmed(box: Box) -> Iterator[None]:
    yield
    box.still_right()


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


# limits


@pytest.mark.parametrize(
    "program",
    [
        call("def f():\n while True: pass"),
        call("import time\ndef f():\n while time.process_time() < 0.8: pass"),
        ShellScript("while :; do :; done"),
        ShellScript("for i in 1 2 3; do (while :; do :; done) & done; wait"),
        SqlQuery(
            "",
            "with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n",
        ),
    ],
)
def test_busy_loop(box: Box, program: PythonCall) -> None:
    assert box.run(program, Limits(cpu_seconds=0.5)).status is Status.CPU_LIMIT


@pytest.mark.parametrize(
    "program",
    [
        call("import time\ndef f():\n while True: time.sleep(1)"),
        call("import threading\ndef f(): threading.Lock().acquire() and threading.Event().wait()"),
        ShellScript("sleep 1000"),
        ShellScript("mkfifo p; cat p"),
    ],
)
def test_sleeping_for_ever(box: Box, program: PythonCall) -> None:
    outcome = box.run(program, SHORT)
    assert (outcome.status, outcome.value) == (Status.BLOCKED, None)


def test_fork_bomb(box: Box) -> None:
    marker = f"bomb{os.getpid()}"
    outcome = box.run(ShellScript(f": {marker}; b() {{ b | b & b; }}; b"), SHORT)
    assert outcome.status in set(Status) - {Status.MEMORY_LIMIT}
    assert processes_holding(marker) == []


def test_number_of_processes(box: Box) -> None:
    code = """
import os, time
def f():
    born = 0
    try:
        while born < 200:
            if os.fork() == 0:
                time.sleep(60); os._exit(0)
            born += 1
    except OSError:
        return born
"""
    outcome = box.run(call(code), Limits(processes=20))
    if outcome.status is not Status.PROCESS_LIMIT:
        assert 10 <= outcome.value[0]["ok"] <= 20


def test_memory_hog(box: Box) -> None:
    outcome = box.run(call("def f(): return len(bytearray(10 ** 9))"))
    assert outcome.status is Status.MEMORY_LIMIT


def test_memory_of_the_whole_tree(box: Box) -> None:
    code = """
import os, time
def f():
    for _ in range(4):
        if os.fork() == 0:
            hold = b"x" * (150 << 20)
            time.sleep(60)
    time.sleep(60)
"""
    outcome = box.run(call(code), Limits(cpu_seconds=10, wall_seconds=20))
    if box.kind == "docker":  # the engine kills the largest, the others sleep on
        assert outcome.status in (Status.MEMORY_LIMIT, Status.BLOCKED, Status.FAILED)
    else:
        assert outcome.status is Status.MEMORY_LIMIT


def test_shared_memory_is_counted(box: Box) -> None:
    code = """
import mmap, time
def f():
    hold = mmap.mmap(-1, 600 << 20)
    for page in range(0, len(hold), 4096):
        hold[page] = 1
    time.sleep(60)
"""
    outcome = box.run(call(code), Limits(cpu_seconds=10, wall_seconds=20))
    assert outcome.status in (Status.MEMORY_LIMIT, Status.FAILED)


def test_filling_the_disk(box: Box) -> None:
    script = (
        "for i in 1 2 3 4 5 6 7 8; do head -c 8000000 /dev/zero > f$i; done;"
        "du -sm . | cut -f1; rm f*"
    )
    outcome = box.run(ShellScript(script))
    if outcome.status is not Status.DISK_LIMIT:
        assert int(outcome.value["stdout"]) <= 17
        assert "No space left" in outcome.value["stderr"]


def test_filling_other_places(box: Box) -> None:
    script = (
        "for d in / /dev/shm /run /var/tmp /etc /usr /dev /tmp/..;do echo x > $d/cqd_$$; done; true"
    )
    outcome = box.run(ShellScript(script))
    assert outcome.value["stdout"] == ""
    assert len(outcome.value["stderr"].splitlines()) == 8


def test_many_files(box: Box) -> None:
    code = """
def f():
    made = 0
    try:
        while made < 200_000:
            open(f"f{made}", "w").close()
            made += 1
    except OSError:
        return made
"""
    outcome = box.run(call(code))
    if outcome.status is not Status.DISK_LIMIT:
        assert outcome.value[0]["ok"] <= 1000


def test_endless_output(box: Box) -> None:
    assert box.run(ShellScript("yes")).status is Status.OUTPUT_LIMIT
    code = "def f():\n while True: print('x' * 1000)"
    assert box.run(call(code)).status is Status.OUTPUT_LIMIT
    assert box.run(call("def f(): return 'x' * 10 ** 6")).status is Status.OUTPUT_LIMIT
    rows = "with recursive n(i) as (select 1 union all select i + 1 from n) select i from n"
    assert box.run(SqlQuery("", rows)).status is Status.OUTPUT_LIMIT
    big = "head -c 1000000 /dev/zero > big"
    assert box.run(ShellScript(big)).status is Status.OUTPUT_LIMIT


def test_tree_too_deep_to_read(box: Box) -> None:
    code = "import os\nfor _ in range(900):\n os.mkdir('d')\n os.chdir('d')"
    outcome = box.run(ShellScript(f'python3 -c "{code}"'))
    assert outcome.status in (Status.FAILED, Status.OUTPUT_LIMIT)


def test_tree_without_end(box: Box) -> None:
    """Deeper than Python recurses and than a path may be long."""
    outcome = box.run(call("import os\nwhile True:\n os.mkdir('a')\n os.chdir('a')"))
    assert outcome.status in (Status.DISK_LIMIT, Status.FAILED)
    assert "ended its box" not in outcome.detail


# other processes


def test_daemon_is_gone(box: Box) -> None:
    name = f"daemon{os.getpid()}"
    script = (
        f"(setsid bash -c 'trap \"\" TERM HUP; : {name}; while :; do sleep 5; done' &) & echo on"
    )
    assert box.run(ShellScript(script)).value["stdout"] == "on\n"
    assert processes_holding(name) == []


def test_killing_everybody(box: Box) -> None:
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        for script in (
            "kill -9 -1; echo here",
            f"kill -9 {victim.pid} 1 $PPID; kill -INT 1; echo on",
        ):
            box.run(ShellScript(script))
            box.still_right()
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_limiting_or_tracing_the_keeper(box: Box) -> None:
    code = """
import ctypes, os, resource
def attempt(action):
    try:
        return repr(action())
    except BaseException as error:
        return type(error).__name__
def f():
    libc = ctypes.CDLL(None)
    parent = os.getppid()
    return [
        attempt(lambda: resource.prlimit(parent, resource.RLIMIT_CPU, (0, 0))),
        libc.ptrace(16, parent, 0, 0),
        attempt(lambda: open(f"/proc/{parent}/mem", "r+b")),
        attempt(lambda: os.listdir(f"/proc/{parent}/fd")),
        attempt(lambda: open(f"/proc/{parent}/environ").read()),
    ]
"""
    first, traced, *rest = box.run(call(code)).value[0]["ok"]
    assert first == "PermissionError"
    assert traced == -1
    assert set(rest) == {"PermissionError"}


# the host


def test_host_files(box: Box, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("hf_very_secret")
    secret.chmod(0o644)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    names = [
        "/etc/shadow", "/etc/hostname", "/root/.bashrc", "/root/.cache/huggingface/token",
        os.path.expanduser("~/.cache/huggingface/token"), str(secret), "/var/log/dpkg.log",
        "/var/run/docker.sock", "/proc/1/root" + str(secret), __file__,
    ]  # fmt: skip
    if box.kind == "docker":
        names = [str(secret), __file__, "/var/run/docker.sock", "/etc/shadow"]
    code = f"""
def f():
    found = []
    for name in {names!r}:
        try:
            open(name).read(); found.append(name)
        except OSError:
            pass
    return found
"""
    assert box.run(call(code)).value == [{"ok": []}]
    script = ShellScript(f"ln -s {secret} l; cat l; cp l c; ls /root/.ssh /work/main")
    value = box.run(script).value
    assert value["stdout"] == ""
    assert value["files"] == {}


def test_installed_packages(box: Box) -> None:
    """This package's own tests may lie among them; nothing there can be changed either."""
    places = [Path(sys.base_prefix, "lib"), Path("/usr/lib"), Path("/usr/local/lib")]
    kinds = ("site-packages", "dist-packages")
    folders = {
        path for place in places for kind in kinds for path in place.glob(f"python3*/{kind}")
    }
    files = [
        str(path)
        for folder in folders
        for path in sorted(path for path in folder.glob("**/*") if path.is_file())[:200]
    ]
    if not files or box.kind == "docker":
        pytest.skip("no package is installed beside Python")
    code = f"""
import os
def f():
    found = []
    for name in {files!r}:
        try:
            found.append(open(name).read(1) and name)
        except OSError:
            pass
    for folder in {sorted(map(str, folders))!r}:
        try:
            open(folder + "/new", "w"); found.append(folder)
        except OSError:
            pass
    return found
"""
    assert box.run(call(code)).value == [{"ok": []}]


def test_launchers_environment(box: Box) -> None:
    code = """
import glob, os
def f():
    text = repr(dict(os.environ)).encode()
    for path in glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline"):
        try:
            text += open(path, "rb").read()
        except OSError:
            pass
    return b"s3cret" in text or b"SECRET_TOKEN" in text
"""
    assert os.environ["SECRET_TOKEN"]
    assert box.run(call(code)).value == [{"ok": False}]
    assert "SECRET" not in box.run(ShellScript("env; cat /proc/*/environ")).value["stdout"]


def test_another_answers_files(box: Box) -> None:
    box.run(ShellScript("echo mine > left; echo mine > $TMPDIR/left; echo mine > ../left"))
    script = "ls -A . $TMPDIR; find / -name left 2>/dev/null"
    assert "left" not in box.run(ShellScript(script)).value["stdout"]


def test_memory_holds_no_other_answer(box: Box) -> None:
    word = "needle_in_an_answer"
    box.run(call(f"def f(): return '{word}'"))
    code = """
import re
def f():
    hidden = "needle" + "_in_an_" + "answer"
    count = 0
    for line in open("/proc/self/maps"):
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
        if match:
            first, last = (int(text, 16) for text in match.groups())
            with open("/proc/self/mem", "rb") as memory:
                memory.seek(first)
                try:
                    count += memory.read(last - first).count((hidden + chr(39)).encode())
                except OSError:
                    pass
    return count
"""
    if box.kind == "landlock":  # no /proc to look through
        assert "PermissionError" in box.run(call(code)).value[0]["error"]
    else:
        assert box.run(call(code)).value == [{"ok": 0}]


def test_network(box: Box) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        arrived: list[object] = []
        threading.Thread(target=lambda: arrived.append(server.accept()), daemon=True).start()
        port = server.getsockname()[1]
        code = f"""
import socket
def attempt(action):
    try:
        action()
        return "worked"
    except OSError as error:
        return type(error).__name__
def f():
    return [
        attempt(lambda: socket.create_connection(("127.0.0.1", {port}), 1)),
        attempt(lambda: socket.socket(socket.AF_UNIX)),
        attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
        attempt(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)),
    ]
"""
        assert box.run(call(code)).value == [{"ok": ["PermissionError"] * 4}]
        value = box.run(ShellScript(f"echo hi > /dev/tcp/127.0.0.1/{port}")).value
        assert value["exit_code"] != 0
        assert arrived == []


def test_kernel_doors_are_shut(box: Box) -> None:
    code = """
import ctypes, os, platform
calls = {"unshare_user": (272, 97, 0x10000000), "mount": (165, 40, 0, 0, 0, 0, 0),
         "keyctl": (250, 219, 0, 0), "bpf": (321, 280, 0, 0, 0), "userfaultfd": (323, 282, 0),
         "perf": (298, 241, 0, 0, 0, 0, 0), "io_uring": (425, 425, 1, 0),
         "memfd": (319, 279, b"x", 0), "clone_user": (56, 220, 0x10000011, 0, 0, 0, 0),
         "shmget": (29, 194, 0, 4096, 0o600), "setns": (308, 268, 0, 0)}
def f():
    libc = ctypes.CDLL(None, use_errno=True)
    arm = platform.machine() == "aarch64"
    result = {}
    for name, (x86, other, *rest) in calls.items():
        value = libc.syscall(other if arm else x86, *rest)
        if name == "clone_user" and value == 0:
            os._exit(0)
        result[name] = [value, ctypes.get_errno()]
    try:
        status = open("/proc/self/status").read()
    except OSError:
        status = ""
    result["caps"] = [line.split()[1] for line in status.splitlines() if line.startswith("Cap")]
    result["clone3"] = [libc.syscall(435, 0, 0), ctypes.get_errno()]
    return result
"""
    result = box.run(call(code)).value[0]["ok"]
    capabilities, clone3 = result.pop("caps"), result.pop("clone3")
    assert all(value == [-1, 1] for value in result.values()), result
    assert clone3 == [-1, 38]
    assert box.kind == "landlock" or capabilities == ["0" * 16] * 5
    script = "unshare -U true; mount -t tmpfs x /tmp; mknod d c 1 1; echo b > /proc/sysrq-trigger"
    assert len(box.run(ShellScript(script)).value["stderr"].splitlines()) >= 4
    if box.kind == "bubblewrap":
        script = "cat /proc/sys/user/max_user_namespaces"
        assert box.run(ShellScript(script)).value["stdout"] == "0\n"


def test_privileges_do_not_return(box: Box) -> None:
    script = "for p in su mount passwd; do command -v $p; done >/dev/null; su root -c id; id -u"
    value = box.run(ShellScript(script)).value
    assert "uid=0" not in value["stdout"]
    assert value["stdout"].strip() != "0"


# SQL


@pytest.mark.parametrize(
    "query",
    [
        "attach database '/etc/passwd' as x; select * from x.sqlite_master",
        "attach database 'new.db' as x; create table x.t (a)",
        "vacuum into 'copy.db'",
        "select load_extension('/usr/lib/x.so')",
        "select writefile('x', 'y')",
        "select readfile('/etc/passwd')",
    ],
)
def test_sql_reaches_no_file(box: Box, query: str) -> None:
    outcome = box.run(SqlQuery("create table t (a)", query))
    assert outcome.status is Status.FINISHED
    words = ("not authorized", "authorization denied", "no such function")
    assert any(word in outcome.value["error"] for word in words)


# the reply


@pytest.mark.parametrize(
    "reply",
    [
        b"garbage",
        b"[" * 60000,
        b"\xff\xfe",
        b'{"value": []}',
        b'{"value": [{"ok": NaN}]}',
        b'{"value": [{"ok": "\\ud800"}]}',
        b'{"value": [{"ok": 1, "error": "x"}]}',
        b'{"value": [{"ok": {"__set__": [[1]]}}]}',
        b'{"value": [{"ok": {"__float__": 1' + b"0" * 400 + b"}}]}",
        b'{"value": [{"ok": {"__complex__": [1' + b"0" * 400 + b", 0]}}]}",
        b'{"value": [{"ok": 1}]}{"value": [{"ok": 1}]}',
    ],
)
def test_malformed_reply(box: Box, reply: bytes) -> None:
    outcome = box.run(call(f"import os\nos.write(3, {reply!r})\nos._exit(0)"))
    assert (outcome.status, outcome.value) == (Status.FAILED, None)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import os\ndef f(): os._exit(0)", Status.FAILED),
        ("import os\nos.closerange(0, 999)\ndef f(): return 1", Status.FAILED),
        ("import os, signal\ndef f(): os.kill(os.getpid(), 9)", Status.FAILED),
        ("import ctypes\ndef f(): ctypes.string_at(0)", Status.FAILED),
        ("import sys\nsys.stdout = sys.stderr = None\ndef f(): return 1", Status.FINISHED),
        ("import sys\nsys.modules.clear()\ndef f(): return 1", Status.FINISHED),
    ],
)
def test_tampering_with_the_runner(box: Box, code: str, status: Status) -> None:
    assert box.run(call(code)).status is status


def test_replaced_json_hurts_only_itself(box: Box) -> None:
    reply = '{"failure": "\\u001b[31mred"}'
    code = f"import json\njson.dumps = lambda *_, **__: {reply!r}\ndef f(): return 1"
    outcome = box.run(call(code))
    assert (outcome.status, outcome.detail) == (Status.FAILED, "[31mred")


def test_details_are_printable(box: Box) -> None:
    outcome = box.run(call("raise ValueError('\\x1b]0;title\\x07' + 'a\\nb' * 500)"))
    assert outcome.detail.isprintable()
    assert len(outcome.detail) <= 200


def test_bytes_that_are_not_text(box: Box) -> None:
    script = r"printf '\xff\xfe\x1b[2J'; printf '\xff' > f; printf x > $'n\xff'"
    value = box.run(ShellScript(script)).value
    assert value["stdout"] == "\ufffd\ufffd\x1b[2J"
    assert value["files"] == {"f": "\ufffd", "n\ufffd": "x"}


def test_special_files_are_not_read(box: Box) -> None:
    script = (
        "mkfifo p; ln -s /etc/passwd l; ln -s / r;mkdir closed; printf x > closed/f; chmod 0 closed"
    )
    outcome = box.run(ShellScript(script))
    assert outcome.value["files"] == {"closed/f": "x"}
    assert outcome.value["links"] == {"l": "/etc/passwd", "r": "/"}
