"""The errors a person can do something about; the CLI prints each as one line.

Anything else that reaches the CLI is a defect of ours and keeps its traceback.
"""

from __future__ import annotations


class CqdHubError(Exception):
    """Base of our errors: *what* is wrong, *where*, and the *remedy*.

    Args:
        what: The fault, in one clause.
        where: File, line and key, command-line option, or repository it was found in.
        remedy: What the person can do, ideally a command.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        line = f"{where}: {what}" if where else what
        super().__init__(f"{line} ({remedy})" if remedy else line)


class UserError(CqdHubError):
    """Wrong input: recipe, model, data or option. Exit code 2; nothing was written."""

    exit_code = 2


class RunError(CqdHubError):
    """A run-time failure: disk full, sandbox broken. Exit code 1; the run can resume."""
