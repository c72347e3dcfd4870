"""The search: archives, choice of parents, the cycle, aggregation weights (numpy only).

It knows individuals only as integer ids and score vectors; genomes and their operators live in
`cqd_hub.genome`, evaluation in `cqd_hub.evaluation`. `docs/search.md` lists every decision.
"""

from __future__ import annotations

from cqd_hub.search._aggregation import aggregation_weights
from cqd_hub.search._archive import Archive
from cqd_hub.search._bounds import derive_bounds, skill_experts
from cqd_hub.search._cycle import Cycle
from cqd_hub.search._grid import GridArchive
from cqd_hub.search._novelty import NoveltyArchive
from cqd_hub.search._records import ArchiveSummary, Elite, Elites, Insertion, Proposal
from cqd_hub.search._sampling import EliteSampling, RandomSampling, Sampling, elite_probabilities

__all__ = [
    # Archives
    "Archive",
    "GridArchive",
    "NoveltyArchive",
    "derive_bounds",
    "skill_experts",
    # Parents
    "Sampling",
    "EliteSampling",
    "RandomSampling",
    "elite_probabilities",
    # The loop
    "Cycle",
    "aggregation_weights",
    # Records
    "ArchiveSummary",
    "Elite",
    "Elites",
    "Insertion",
    "Proposal",
]
