"""Merges outside the linear family: points in weight space that genomes weigh like experts.

mergekit performs them, slot by slot in memory; it is imported by the first that is asked for.
`cqd_hub.genome.merge.store` keeps the results.
"""

from cqd_hub.genome.merge.methods import Method, check_method, find_method
from cqd_hub.genome.merge.record import Drawn, Merge

__all__ = ["Drawn", "Merge", "Method", "check_method", "find_method"]
