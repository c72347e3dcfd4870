"""Evolve language models that hold several skills at once (CycleQD, arXiv 2410.14735)."""

__version__ = "0.1.0"
