"""Two parents and a recipe to a child, with the record that replays it."""

from __future__ import annotations

from typing import Any

import numpy as np

from cqd_hub.genome import (
    Basis,
    Genome,
    crossover,
    crossover_weights,
    mutate_child,
    mutate_expert,
    mutate_gaussian,
)
from cqd_hub.genome.merge import Drawn, Merge, find_method
from cqd_hub.randomness import generator
from cqd_hub.recipe.schema import Crossover, Variation
from cqd_hub.search import Proposal


def make_child(
    proposal: Proposal,
    parents: tuple[Genome, Genome],
    *,
    variation: Variation,
    basis: Basis,
    expert: int,
    seed: int,
) -> tuple[Genome, dict[str, Any]]:
    """Cross two parents over, or merge them by a method of mergekit's, and mutate the result.

    A merge's ``weight`` (or ``slerp``'s ``t``, the second parent's share) is drawn as the shares of
    a linear crossover are, unless the recipe gives it.

    Args:
        proposal: Which child.
        parents: Their genomes.
        variation: The recipe's operators.
        basis: Of all genomes.
        expert: The active skill's expert, for ``of: expert``.
        seed: The run's.

    Returns:
        The child and its lineage: parents, operators, parameters and seed, as JSON.
    """
    cross, mutation, layout = variation.crossover, variation.mutation, basis.layout
    groups = layout.groups(cross.per)
    shares = crossover_weights(
        generator(seed, proposal.individual, "crossover"),
        groups=groups,
        mean=cross.mean,
        deviation=cross.deviation,
    )
    firsts = np.unique(groups, return_index=True)[1]
    record: dict[str, Any] = {
        "method": cross.method,
        "per": cross.per,
        "mean": cross.mean,
        "deviation": cross.deviation,
        "shares": shares[:, firsts].tolist(),  # [2][groups]
    }
    if cross.method == "linear":
        child = crossover(parents, shares, basis)
    else:
        merge = _merge(proposal, parents, cross, record["shares"], seed)
        child = Genome.of_merge(basis.hash, layout, merge)
        if merge.drawn is None:
            record = {"method": cross.method}
        record |= {"parameters": cross.parameters, "seed": merge.seed, "merge": merge.id}
    rng = generator(seed, proposal.individual, "mutation")
    operator: dict[str, Any] = {"kind": mutation.kind}
    if mutation.kind == "gaussian":
        operator |= {"deviation": mutation.deviation, "noise": int(rng.integers(2**31))}
        child = mutate_gaussian(
            child, seed=operator["noise"], deviation=mutation.deviation, basis=basis
        )
    elif mutation.kind == "svd":
        operator |= {"of": mutation.of, "w_max": mutation.w_max, "zero_mean": mutation.zero_mean}
        if mutation.of == "child":
            child = mutate_child(
                child, rng, basis=basis, w_max=mutation.w_max, zero_mean=mutation.zero_mean
            )
        else:
            operator |= {"per": mutation.per, "expert": expert}
            child = mutate_expert(
                child,
                rng,
                basis=basis,
                expert=expert,
                w_max=mutation.w_max,
                zero_mean=mutation.zero_mean,
                granularity=None if mutation.per == "direction" else mutation.per,
            )
    lineage = {
        "parents": list(proposal.parents),
        "crossover": record,
        "mutation": operator,
        "seed": seed,
    }
    return child, lineage


def _merge(
    proposal: Proposal,
    parents: tuple[Genome, Genome],
    cross: Crossover,
    shares: list[list[float]],
    seed: int,
) -> Merge:
    method, drawn = find_method(cross.method), None
    if method.drawn is not None and method.drawn not in cross.parameters:
        rows = shares if method.per_parent else shares[1:]
        drawn = Drawn(method.drawn, cross.per, tuple(tuple(row) for row in rows))
    return Merge.make(
        cross.method,
        parents=[parent.hash for parent in parents],
        seed=int(generator(seed, proposal.individual, "merge").integers(2**31)),
        parameters=cross.parameters,
        drawn=drawn,
    )
