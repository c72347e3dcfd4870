"""The versions of the benchmark, each with its own rules of play."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Name = Literal["agentbench-v0.2", "agentbench-fc", "cycleqd"]


@dataclass(frozen=True)
class Dialect:
    """Rules of one version.

    Attributes:
        rounds: Replies the model has.
        command_seconds: A command may take; then it is ended and what it printed is the reply.
        folder: Where the shell and every script start.
        tools: Whether actions are function calls; else they are lines of text.
        strict_init: Whether a script that sets the sample up must succeed.
        always_judged: Whether what was done is judged where the others fail the sample: no readable
            action, a command out of time, no rounds or no context left. CycleQD judges answers
            then, too, as if "" had been given, which some checks accept; here they fail.
        both_streams: Whether a script's output, a later script's parameter, includes stderr.
        memory_mb: Of the machine.
    """

    rounds: int = 8
    command_seconds: float = 30.0
    folder: str = "/"
    tools: bool = False
    strict_init: bool = True
    always_judged: bool = False
    both_streams: bool = True
    memory_mb: int = 512


DIALECTS: dict[Name, Dialect] = {
    "agentbench-v0.2": Dialect(),
    "agentbench-fc": Dialect(folder="/root", tools=True, both_streams=False, memory_mb=1024),
    "cycleqd": Dialect(rounds=5, command_seconds=5.0, strict_init=False, always_judged=True),
}
