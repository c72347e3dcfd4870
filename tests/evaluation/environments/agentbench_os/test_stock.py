"""The stock checks, case by case."""

from __future__ import annotations

import pytest

from cqd_hub.evaluation.environments.agentbench_os.stock import NAMES, accepts, name_of


@pytest.mark.parametrize(
    ("name", "answer", "reference", "passes"),
    [
        ("integer-match", "7", "7\n", True),
        ("integer-match", " 07 ", "7", True),
        ("integer-match", "-3", "-3", True),
        ("integer-match", "7.0", "7", False),
        ("integer-match", "seven", "7", False),
        ("integer-match", "None", "7", False),
        ("integer-match", "7", "", False),
        ("integer-match", "9" * 5000, "9" * 5000, False),
        ("string-match", " a b\r\n", "a b", True),
        ("string-match", "a\r\nb", "a\nb", True),
        ("string-match", "A", "a", False),
        ("string-match", "", "\n", True),
        ("containing", "there are 17 lines", "17\n", True),
        ("containing", "17", "there are 17 lines", False),
        ("in", "pear", "pear\nplum\n", True),
        ("in", "pear\nplum\nfig", "pear\nplum\n", False),
        ("size-match", "20K", "20480", True),
        ("size-match", "1M", "1024K\n", True),
        ("size-match", "5B", "5Byte", True),
        ("size-match", "2G", "2048M", True),
        ("size-match", "1P", "1024T", True),
        ("size-match", "4.0K", "4.0K", False),
        ("size-match", "4KB", "4KB", False),
        ("size-match", "4k", "4096", False),
    ],
)
def test_verdicts(name: str, answer: str, reference: str, passes: bool) -> None:
    assert accepts(name, (answer, reference)) is passes


@pytest.mark.parametrize("name", sorted(NAMES))
def test_an_answer_without_a_reference_does_not_pass(name: str) -> None:
    assert not accepts(name, ("1",))


def test_a_checkouts_own_text_is_known_whatever_its_white_space() -> None:
    code = """
from sys import argv
if int(argv[1]) == int(argv[2]):
    exit(0)
exit(1)
"""
    assert name_of(code) == name_of(code.replace(":\n    ", ": ")) == "integer-match"
    assert name_of(code.replace("exit(0)", "exit(2)")) == ""
