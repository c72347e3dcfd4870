"""Checking a rebuilt individual against the fingerprint that was published with it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cqd_hub.errors import UserError

if TYPE_CHECKING:
    from cqd_hub.genome import Basis, Genome
    from cqd_hub.genome.merge.store import MergeStore

_REMEDY = "take the published files with --published"


def check_fingerprint(
    genome: Genome,
    basis: Basis,
    published: Any,
    *,
    where: str,
    merges: MergeStore | None = None,
) -> None:
    """Rebuild an individual's fp32 weights, slot by slot, and compare them.

    Args:
        published: What a stranger says: slot → norm, product with random signs.
        where: Names the published model in errors.
        merges: Holds what the genome weighs.

    Raises:
        UserError: That is no fingerprint, or a slot differs by more than the tolerance.
    """
    from cqd_hub.genome import Materialiser
    from cqd_hub.genome.fingerprint import TOLERANCE, differing, fingerprint

    if not isinstance(published, dict) or not all(map(_is_pair, published.values())):
        raise UserError("has no fingerprint of its weights", where=where, remedy=_REMEDY)
    slot = differing(fingerprint(genome, Materialiser(basis, merges=merges)), published)
    if slot is not None:
        raise UserError(
            f"the rebuilt weights are not the published ones: {slot[:80]} differs by more than "
            f"{TOLERANCE:g} of its norm",
            where=where,
            remedy=_REMEDY,
        )


def _is_pair(pair: Any) -> bool:
    numbers = isinstance(pair, list) and len(pair) == 2 and {int, float} >= {*map(type, pair)}
    return numbers and all(map(math.isfinite, pair))
