"""Samples played on AgentBench's own task server, for comparison with the original."""

from __future__ import annotations

from .environment import TaskServer

__all__ = ["TaskServer"]
