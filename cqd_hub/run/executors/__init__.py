"""Executors: who evaluates a run's individuals, and where.

The driver (`cqd_hub.run.evolve`) makes children and keeps the journal; genomes of kilobytes go out,
measurements come back.
"""

from cqd_hub.run.executors._interface import Done, Executor, Job
from cqd_hub.run.executors._open import Choice, choose, common_manifest, open_executor

__all__ = ["Choice", "Done", "Executor", "Job", "choose", "common_manifest", "open_executor"]
