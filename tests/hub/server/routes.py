"""All routes, in the order in which they are tried."""

from __future__ import annotations

# Importing registers; `repos` and `pages` end with routes that would swallow longer ones.
from . import cards, collections, commits, download, lfs, trees, repos, pages  # isort: skip # noqa: F401
from .routing import dispatch

__all__ = ["dispatch"]
