"""DBBench of AgentBench: questions about, and changes of, one table in a database of its own."""

from __future__ import annotations

from .environment import DBBench

__all__ = ["DBBench"]
