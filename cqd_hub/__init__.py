"""Evolve language models that hold several skills at once (CycleQD, arXiv 2410.14735)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cqd_hub.api import Run, evolve, open_run, plan

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "evolve", "open_run", "plan"]


def __getattr__(name: str) -> Any:
    if name in ("Run", "evolve", "open_run", "plan"):
        from cqd_hub import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
