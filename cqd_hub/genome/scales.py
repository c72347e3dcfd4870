"""A genome's coefficients split into what scales a whole task vector and what is left over."""

from __future__ import annotations

from typing import Literal

import numpy as np

from cqd_hub.genome.basis import Basis
from cqd_hub.genome.genome import Genome
from cqd_hub.genome.layout import Segment


class Scales:
    """Splits Σ_i g_i u_i s_i v_iᵀ (+ t · tail) into t·τ + Σ_i (g_i - t) u_i s_i v_iᵀ.

    Where an expert's factors (with the tail, if it has one) sum to its task vector, t·τ can be
    taken from the expert itself, and nothing is multiplied for directions that share one scale.
    t is the tail's scale; without a tail, the scale that all directions have, or 0 if they differ.

    Args:
        basis: What the coefficients scale.
        whole: What t·τ is taken of where there is no tail (tails always are): ``"dense"`` task
            vectors, ``"all"``, or ``"none"``.
        centred: Where the scales differ and there is no tail, take the middle of their range for t
            instead of 0, so that the left-over is small.

    Attributes:
        dense: The (slot, expert) pairs that t·τ is taken of.
        stack: Per slot, the positions of all experts' scales in the coefficient vector.
    """

    def __init__(
        self,
        basis: Basis,
        *,
        whole: Literal["dense", "all", "none"] = "dense",
        centred: bool = False,
    ) -> None:
        layout = basis.layout
        segments = [
            segment for row in layout.segments for segment in row if segment.stop > segment.start
        ]
        self._starts = np.array([segment.start for segment in segments])
        self._last = np.array([segment.stop - 1 for segment in segments])
        self._tailed = np.array([segment.tail for segment in segments])
        self._dense = np.array(
            [
                segment.tail
                or (
                    (whole == "all" or (whole == "dense" and _dense(basis, segment)))
                    and complete(basis, segment)
                )
                for segment in segments
            ]
        )
        self._centred = centred
        self._place = tuple(np.array([(s.slot, s.expert) for s in segments]).T)
        self._lengths = np.array([segment.stop - segment.start for segment in segments])
        self._shape = (len(layout.slots), len(layout.experts))
        self._cores = {slot.name: index for index, slot in enumerate(layout.slots)}
        self.dense = [
            (segment.slot, segment.expert)
            for segment, dense in zip(segments, self._dense, strict=True)
            if dense
        ]
        self.stack = [
            np.concatenate([np.arange(s.start, s.start + s.rank) for s in row])
            for row in layout.segments
        ]

    def split(self, genome: Genome) -> tuple[np.ndarray, np.ndarray]:
        """Return t ``[slots, experts]`` and g - t ``[layout.size]`` (0 at the tails).

        In a slot with a core t is 0: the core's frame carries all of the slot.
        """
        g = genome.coefficients.astype(np.float64)
        low, high = (extreme.reduceat(g, self._starts) for extreme in (np.minimum, np.maximum))
        middle = np.where(self._centred | (low == high), (low + high) / 2, 0.0)
        t = np.where(self._dense, np.where(self._tailed, g[self._last], middle), 0.0)
        shared = np.zeros(self._shape)
        shared[self._place] = t
        cored = [self._cores[name] for name in genome.cores]
        shared[cored] = 0.0
        return shared, (g - np.repeat(t, self._lengths)).astype(np.float32)


def complete(basis: Basis, segment: Segment) -> bool:
    """Whether a segment's factors alone sum to the expert's task vector."""
    return not _dense(basis, segment) or segment.rank == min(basis.layout.slots[segment.slot].shape)


def _dense(basis: Basis, segment: Segment) -> bool:
    return basis.is_dense(segment.slot, segment.expert)
