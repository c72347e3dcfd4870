"""Two parents and a recipe to a child, with the record that replays it."""

from __future__ import annotations

from typing import Any

from cqd_hub.genome import (
    Basis,
    Genome,
    crossover,
    crossover_weights,
    mutate_child,
    mutate_expert,
    mutate_gaussian,
)
from cqd_hub.randomness import generator
from cqd_hub.recipe.schema import Variation
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
    """Cross two parents over and mutate the result.

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
    child = crossover(parents, shares, basis)
    rng = generator(seed, proposal.individual, "mutation")
    if mutation.kind == "gaussian":
        noise_seed = int(rng.integers(2**31))
        child = mutate_gaussian(child, seed=noise_seed, deviation=mutation.deviation, basis=basis)
    elif mutation.kind == "svd" and mutation.of == "child":
        child = mutate_child(
            child, rng, basis=basis, w_max=mutation.w_max, zero_mean=mutation.zero_mean
        )
    elif mutation.kind == "svd":
        child = mutate_expert(
            child,
            rng,
            basis=basis,
            expert=expert,
            w_max=mutation.w_max,
            zero_mean=mutation.zero_mean,
            granularity=None if mutation.per == "direction" else mutation.per,
        )
    firsts = [int((groups == group).argmax()) for group in range(int(groups.max()) + 1)]
    lineage = {
        "parents": list(proposal.parents),
        "crossover": {"per": cross.per, "shares": shares[:, firsts].round(9).tolist()},
        "mutation": mutation.model_dump(exclude_defaults=True) | {"kind": mutation.kind},
        "seed": seed,
    }
    return child, lineage
