"""A Hub of the tests' own: the real client speaks to it over HTTP on 127.0.0.1."""

from __future__ import annotations

from .faults import Fault
from .hub import HubServer
from .log import Entry
from .site import Settings
from .store import Commit, File, Repo

__all__ = ["Commit", "Entry", "Fault", "File", "HubServer", "Repo", "Settings"]
