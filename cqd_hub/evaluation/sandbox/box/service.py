"""A program that stays: confined once, then asked again and again.

For trusted programs that read a model's text as data (a database engine), where a process per
answer would cost more than the answer. There is no keeper: the other end bounds the time.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
from collections.abc import Mapping
from typing import Any

from . import answer, seccomp, zygote


def main(config: Mapping[str, Any]) -> None:
    """Become powerless, then `serve(read_frame, write_frame)` of the module that is named.

    Args:
        config: As `zygote.main`'s, with `serve` (the module's name) and `memory_mb`.
    """
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
    module = importlib.import_module(f"box.{config['serve']}")
    box = zygote.Box(config)
    limits = {"memory_mb": config["memory_mb"], "cpu_seconds": 1 << 30, "disk_mb": 0, "tasks": 0}
    program = box.program
    if box.own_signals_only:
        program = seccomp.assemble(**box.filter, only_signal=os.getpid())
    answer.become_powerless(limits, {"LANG": "C.UTF-8"}, program, rules=box.rules, uid=box.uid)
    module.serve(zygote.read_frame, zygote.write_frame)
    os._exit(0)
