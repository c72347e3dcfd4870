"""MBPP+ and HumanEval+ (EvalPlus), run in our own sandbox; see docs/coding.md."""

from __future__ import annotations

from .environment import EvalPlus

__all__ = ["EvalPlus"]
