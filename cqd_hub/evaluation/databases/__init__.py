"""Databases that agents may do as they like in."""

from __future__ import annotations

from ._interface import Answered, Cell, DatabaseLost, Databases, Session, Table

__all__ = ["Answered", "Cell", "DatabaseLost", "Databases", "Session", "Table"]
