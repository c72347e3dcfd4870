"""What is known to be wrong with samples, so that their scores say nothing.

A sample is known by its reference command, which is the same in every version of the data (their
descriptions and order are not). Found by playing the references, see docs/agentbench-os.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cqd_hub.evaluation.environments.agentbench_os.dialects import Dialect
from cqd_hub.evaluation.environments.agentbench_os.problem import Problem

_DECIMALS = "its reference prints a decimal size (4.0K), which its check cannot read"
_PROCESSES = "counts its own processes: the reference at judging counts others than the agent did"
_WANDERS = "its reference counts whatever folder it runs in, not the one the question is about"
_NO_LOGS = "asks about the .log files of a fresh machine's /var/log, where its reference finds none"
_TWO_NUMBERS = "its reference prints two numbers, its check reads one"
_UNDOES = "its reference counts after the task is done what the question asks to count before"
_MANY_LINES = "its answer has several lines, which a line of text cannot hold"

# Digest of the reference command → reason.
_BY_REFERENCE = {
    "2a77573b759442f1": _DECIMALS,  # dev 8
    "849c62dd3c7f6407": _PROCESSES,  # std 7/0
    "201eadad076be670": _PROCESSES,  # std 7/75
    "0bab68b5bbbf4010": _WANDERS,  # std 7/8
    "ac84b121f8e1168a": _WANDERS,  # std 7/29
    "7eb8a0908aa9ff55": _NO_LOGS,  # train 147
    "7a6bc7d4cf223a57": _NO_LOGS,  # train 242
    "196433faa55f930f": _NO_LOGS,  # train 934
    "b447ecbe1c0fad5b": _NO_LOGS,  # train 948
    "483cc7a7e954c248": _TWO_NUMBERS,  # train 252
    "c8c62d5ab4c0c829": _UNDOES,  # train 683
}
_IN_TEXT = {
    "2d023d9521024ec6": _MANY_LINES,  # train 318
    "b074a83011955f05": _MANY_LINES,  # train 787
    "7bfcf018a7e22afa": _MANY_LINES,  # train 943
}
_USERS = re.compile(
    r"\b(useradd|adduser|usermod|groupadd|passwd|chown|chgrp|su|runuser|setpriv)\s"
    r"|\bapt(-get)?\s+(-y\s+)?(install|update)\b"
)
_IMAGES = ("default", "ubuntu")


def fault_of(problem: Problem, dialect: Dialect) -> str:
    """The reason why *problem*'s score in *dialect* would say nothing, or empty."""
    if dialect.tools and problem.image not in _IMAGES:
        return f"asks for the machine image {problem.image}, which is not ours"
    if problem.example is None:
        return ""
    known = digest(problem.example.code)
    return _BY_REFERENCE.get(known, "") or ("" if dialect.tools else _IN_TEXT.get(known, ""))


def needs_users(document: Mapping[str, Any]) -> str:
    """The fault, on machines where root is the only user, of a sample that names others."""
    if not _USERS.search(json.dumps(document)):
        return ""
    return "needs users besides root, which machines do not have here (docs/sandbox.md)"


def missing_script(names: Sequence[str]) -> str:
    """The fault of a sample whose scripts, by these names, are not with the data."""
    return f"its script {', '.join(names)} is not with the data"


def digest(command: str) -> str:
    """What a reference command is known by: spaces and line ends do not count."""
    return hashlib.sha256(" ".join(command.split()).encode()).hexdigest()[:16]
