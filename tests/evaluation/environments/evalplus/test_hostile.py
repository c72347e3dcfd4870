"""Answers that tamper: each gets no point, and the next answer its right verdict, in every kind
of sandbox."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from cqd_hub.evaluation.episodes import Message, Verdict

# A fixture is found by its name in this module.
from tests.evaluation.sandbox.conftest import Box, box  # noqa: F401

from .common import DOUBLE, Ground, record, write

SECRET = f"zebra{os.getpid()}"
WORD = record(
    "Mbpp/9050",
    "word",
    f"def word(n):\n    return '{SECRET}'[:n]\n",
    [[2]],
    [[99], [98]],
    first="'ze'",
)
GOOD = "def double(x):\n    return x + x"


@pytest.fixture(scope="module")
def opened(box: Box, tmp_path_factory: pytest.TempPathFactory) -> Ground:  # noqa: F811
    data = write(tmp_path_factory.mktemp("data") / "tasks.jsonl", [DOUBLE, WORD])
    return Ground(box.loop, box.sandbox, data, dialect="evalplus")


@pytest.fixture(autouse=True)
def _next_answer_unharmed(opened: Ground) -> Iterator[None]:
    yield
    assert opened.verdict("double", GOOD) == (1.0, "completed", "")
    assert opened.verdict("double", "def double(x):\n    return 3").score == 0


ALWAYS_EQUAL = """
class double(int):
    def __new__(cls, x):
        return int.__new__(cls, 77)
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __hash__ = int.__hash__
"""
EQUAL_OBJECT = """
class Yes:
    def __eq__(self, other): return True
    def __repr__(self): return '{"ok": 2}'
def double(x): return Yes()
"""
PATCHED_REPORT = """
import sys
def double(x):
    for name, module in list(sys.modules.items()):
        for known in ("to_json", "from_json", "same", "loads", "dumps", "process_time"):
            if hasattr(module, known):
                setattr(module, known, lambda *a, **k: 2)
    return 77
"""
PATCHED_BUILTINS = """
import builtins
def double(x):
    for name in ("len", "list", "dict", "isinstance", "type", "min", "print", "getattr"):
        setattr(builtins, name, lambda *a, **k: True)
    return True
"""
FAKE_REPLY = """
import json, os
def double(x):
    os.write(3, json.dumps({"value": [{"ok": True}] * 3}).encode())
    os._exit(0)
"""
FAKE_FRAMES = """
import json, os, struct
def double(x):
    reply = json.dumps({"value": [{"ok": 2}]})
    data = json.dumps({"end": "exit", "exit": 0, "cpu": 0, "stderr": "", "reply": reply}).encode()
    for number in range(64):
        try:
            os.write(number, struct.pack(">I", len(data)) + data)
        except OSError:
            pass
    os._exit(0)
"""
OWN_RESULTS = """
import sys
def double(x):
    frame = sys._getframe()
    while frame:
        for value in frame.f_locals.values():
            if isinstance(value, list):
                value[:] = [{"ok": 2}] * 3
        frame = frame.f_back
    return 77
"""
EXIT_CODES = [
    f"def double(x):\n    {act}"
    for act in (
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "import os, signal; os.kill(os.getpid(), 9)",
        "import os, signal; os.kill(os.getppid(), 9); return 77",
        "import os; os.kill(-1, 9)",
        "import os; os.closerange(0, 99); return 2 * x",
        "import os; os.fork(); return 77",
        "import signal; signal.signal(signal.SIGPROF, signal.SIG_IGN); return 77",
        "raise KeyboardInterrupt",
        "raise Exception('\\x1b[2J\\n{\"ok\": 2}')",
    )
]


@pytest.mark.parametrize(
    "code",
    [
        ALWAYS_EQUAL,
        EQUAL_OBJECT,
        PATCHED_REPORT,
        PATCHED_BUILTINS,
        FAKE_REPLY,
        FAKE_FRAMES,
        OWN_RESULTS,
        *EXIT_CODES,
    ],
)
def test_tampering_gains_nothing(opened: Ground, code: str) -> None:
    verdict = opened.verdict("double", code)
    assert verdict.score == 0
    assert verdict.note.isprintable()


SEARCH = """
import gc, glob, os, re

def search(text):
    found = re.search("zeb" + "ra[0-9]+", text)
    return found and found.group()

def word(n):
    for each in gc.get_objects():
        try:
            if found := search(repr(each)):
                return found[:n]
        except Exception:
            pass
    paths = glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline") + glob.glob("/proc/*/maps")
    for top in ("/tmp", "/work", "/root", "/home", os.path.expanduser("~/.cache")):
        paths += glob.glob(top + "/**", recursive=True)
    for path in paths:
        try:
            with open(path, errors="replace") as file:
                if found := search(file.read(1 << 20)):
                    return found[:n]
        except (OSError, ValueError):
            pass
    return "ze"[:n]
"""


def test_expected_values_are_nowhere_to_be_found(opened: Ground) -> None:
    assert opened.verdict("word", SEARCH) == (0.0, "completed", "plus input 0: wrong value")
    near = f"HERE = ['{SECRET}']\n{SEARCH}".replace("def word(n):", "def word(n):\n    HERE")
    assert opened.verdict("word", near).score == 1  # it would find them


NEIGHBOUR = """
import os, time
def double(x):
    if os.fork() == 0:
        os.setsid()
        while True:
            for folder in ("/tmp", "/work", os.environ.get("TMPDIR", "."), "."):
                try:
                    for name in ("solution.py", "random.py", "json.py", "sitecustomize.py"):
                        with open(f"{folder}/{name}", "w") as file:
                            file.write("raise SystemExit")
                except OSError:
                    pass
            for number in range(1, 400):
                try:
                    os.kill(number, 9)
                except OSError:
                    pass
    return 77
"""


def test_a_neighbour_is_out_of_reach(opened: Ground) -> None:
    async def play(text: str) -> float:
        episode = await opened.environment.begin(opened.samples["double"])
        turn = await episode.step(Message("assistant", text))
        assert isinstance(turn, Verdict)
        return turn.score

    async def together() -> list[float]:
        return await asyncio.gather(*(play(text) for text in [NEIGHBOUR, GOOD] * 3))

    assert opened.loop.run_until_complete(together()) == [0, 1] * 3


@pytest.mark.parametrize(
    "text",
    ["(" * 60_000, "def double(x):\n    return " + "-" * 60_000 + "x", "```\n" * 15_000,
     "def double(x):\n" + "@f\n" * 20_000, "def double(x): return x\n" + "try:\n x\n" * 6_000,
     "def double(x):\n    return '\ud800'", "\0", "\x1b[2Jdef double(x): return x"],
)  # fmt: skip
def test_text_made_to_hurt_the_reader(opened: Ground, text: str) -> None:
    assert opened.verdict("double", text).score == 0
