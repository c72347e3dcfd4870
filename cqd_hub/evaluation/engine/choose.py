"""Which engine a run's work is for: numpy only, from the shape of the work and of the factors."""

from __future__ import annotations

from typing import NamedTuple

from cqd_hub.genome.layout import Layout

# What a pass costs beside its tokens (weights read, kernels started), in tokens; measured on a CPU
# (`benchmarks/engine.py`), for a GPU estimated from an H200's speeds and 8B in bfloat16.
_PASS = {("cpu", "float32"): 22.0, ("cpu", "bfloat16"): 60.0}
_PASS_ON_GPU = 120.0
_WRITING = 3.0  # passes that writing an individual into the model takes
_SMALL = 1.3  # what many small products cost over few large ones
_MARGIN = 1.2  # by which a population must be faster: its scores are not the canonical ones
_ROWS = {"cpu": 128, "cuda": 1024}  # beyond these more rows save nothing


class Work(NamedTuple):
    """What one individual is asked, on average.

    Args:
        rows: Requests.
        prompt: Their prompts' tokens.
        answer: Tokens of an answer; 0 where all are scored.
        children: How many individuals may be under way together.
    """

    rows: int
    prompt: float
    answer: float
    children: int


class Choice(NamedTuple):
    """An engine, and why.

    Args:
        kind: ``"sequential"``, ``"population"``, or ``"vllm"`` where it is asked for.
        width: How many individuals a run should have under way.
        reason: One line.
    """

    kind: str
    width: int
    reason: str


def choose(work: Work, layout: Layout, *, device: str, dtype: str, cores: bool = False) -> Choice:
    """The faster engine.

    Both read every prompt; one after the other pays for every pass of every individual, a
    population for one pass of all, and for the factors' products in every row.

    Args:
        work: Of one individual.
        layout: Of the basis.
        device: Its type.
        dtype: Of the model.
        cores: Whether individuals have cores (SVD mutation of the child's task vector).
    """
    fixed = _PASS.get((device, dtype), _PASS_ON_GPU)
    rows = max(work.rows, 1)
    width = max(2, min(work.children, -(-_ROWS.get(device, _ROWS["cuda"]) // rows)))
    extra = 1 + overhead(layout, cores=cores)
    read, steps = rows * work.prompt, work.answer
    alone = _WRITING * fixed + (fixed + read) + steps * (fixed + rows)
    shared = fixed / width
    together = _SMALL * ((shared + read * extra) + steps * (shared + rows * extra))
    gain = alone / together
    if work.children > 1 and gain > _MARGIN:
        return Choice("population", width, f"about {gain:.1f} times as fast as one after the other")
    return Choice("sequential", 2, f"a population would be {gain:.1f} times as fast")


def overhead(layout: Layout, *, cores: bool = False) -> float:
    """Operations on shared factors per row, over those on the base's own matrices."""
    own = added = 0.0
    for slot, ranks, tails in zip(layout.slots, layout.ranks, layout.tails, strict=True):
        if slot.is_matrix:
            size, rank = slot.shape[0] * slot.shape[1], sum(ranks)
            own += size
            added += rank * sum(slot.shape) + sum(tails) * size
            added += rank * (rank + sum(slot.shape)) if cores else 0
    return added / own if own else 0.0
