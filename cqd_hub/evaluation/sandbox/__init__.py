"""Sandboxes: the only places where text written by a model is executed.

Inputs go in, outputs come out; expected values and the comparison stay with the caller:

    async with await open_sandbox() as sandbox:
        outcome = await sandbox.run(PythonCall("def f(x): return x + 1", "f", ((1,), (2,))))
        # Outcome(status=Status.FINISHED, value=[{"ok": 2}, {"ok": 3}], ...)

`docs/sandbox.md` says what each kind bounds and what it does not.
"""

from __future__ import annotations

from ._open import Availability, Kind, available, open_sandbox
from ._programs import (
    JSON,
    Limits,
    Outcome,
    Program,
    PythonCall,
    SandboxFailure,
    ShellScript,
    SqlQuery,
    Status,
    printable,
)
from ._sandboxes import Sandbox
from ._start import Service
from .box.values import from_json, to_json

__all__ = [
    "JSON",
    "Availability",
    "Kind",
    "Limits",
    "Outcome",
    "Program",
    "PythonCall",
    "Sandbox",
    "SandboxFailure",
    "Service",
    "ShellScript",
    "SqlQuery",
    "Status",
    "available",
    "from_json",
    "open_sandbox",
    "printable",
    "to_json",
]
