"""What was asked and answered."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One request. `status` is None where no answer was sent; sizes are those of the bodies."""

    method: str
    target: str
    status: int | None
    received: int
    sent: int
    agent: str
    authorized: bool
    fault: str | None = None


class Log:
    """Entries in the order in which their answers were ready."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[Entry] = []

    def add(self, entry: Entry) -> None:
        with self._lock:
            self._entries.append(entry)

    def reset(self) -> None:
        with self._lock:
            self._entries = []

    @property
    def entries(self) -> list[Entry]:
        with self._lock:
            return list(self._entries)

    def find(self, path: str = "", method: str | None = None) -> list[Entry]:
        """Those whose path and query match a regular expression."""
        return [
            entry
            for entry in self.entries
            if method in (None, entry.method) and re.search(path, entry.target)
        ]

    @property
    def received(self) -> int:
        """Bytes of all request bodies."""
        return sum(entry.received for entry in self.entries)

    @property
    def sent(self) -> int:
        """Bytes of all answer bodies."""
        return sum(entry.sent for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)
