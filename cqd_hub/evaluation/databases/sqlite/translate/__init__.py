"""MySQL's dialect into SQLite's, with the functions and the collation that `box/` defines."""

from __future__ import annotations

from ._statements import translate

__all__ = ["translate"]
