"""Crossover and mutation on genomes (CycleQD §3.2 and §3.3).

The operators touch kilobytes of coefficients; no weight is read, except that SVD mutation of the
child's own task vector needs the experts' frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from cqd_hub.errors import UserError
from cqd_hub.genome.basis import Basis
from cqd_hub.genome.genome import Genome, combine
from cqd_hub.genome.layout import Granularity


def crossover_weights(
    rng: np.random.Generator, *, groups: np.ndarray, mean: float, deviation: float
) -> np.ndarray:
    """Draw the two parents' shares, normalised to sum 1 in each group of slots.

    Eq. of §3.2: w_i ~ N(mean, deviation²), share_i = w_i / (w_1 + w_2), with one pair for the whole
    model; here also one pair per group. Negative shares are allowed, as in the paper. A pair whose
    sum is within 0.1 of zero, where the paper's quotient explodes, is drawn again.

    Args:
        groups: ``[slots]`` group number of each slot.

    Returns:
        ``[2, slots]``.
    """
    count = int(groups.max()) + 1
    shares = np.empty((2, count))
    for group in range(count):
        weights = rng.normal(mean, deviation, size=2)
        while abs(weights.sum()) < 0.1:
            weights = rng.normal(mean, deviation, size=2)
        shares[:, group] = weights / weights.sum()
    return shares[:, groups]


def crossover(parents: Sequence[Genome], shares: np.ndarray, basis: Basis) -> Genome:
    """θ_child = θ_base + Σ_i share_i · τ_i, with ``shares`` [parents, slots] (or [parents])."""
    return combine(parents, shares, basis.layout)


def mutate_expert(
    genome: Genome,
    rng: np.random.Generator,
    *,
    basis: Basis,
    expert: int,
    w_max: float,
    zero_mean: bool = False,
    granularity: Granularity | None = None,
) -> Genome:
    """Add U diag(w ⊙ S) Vᵀ of one expert's task vector to every matrix (the released code's form).

    Args:
        expert: Whose singular directions.
        w_max: w ~ U(0, w_max), one draw per singular direction; the tail beyond the basis's rank
            moves as one direction. With ``zero_mean``, w ~ U(-w_max, w_max).
        granularity: With a value, one draw per model, layer or matrix instead of per direction.
            Independent draws over many directions average out to a change of scale by w_max/2;
            shared draws do not.
    """
    layout = basis.layout
    low = -w_max if zero_mean else 0.0
    reached = (layout.expert_of == expert) & layout.in_matrix
    if granularity is None:
        step = rng.uniform(low, w_max, size=layout.size)
    else:
        groups = layout.groups(granularity)
        step = rng.uniform(low, w_max, size=int(groups.max()) + 1)[groups][layout.slot_of]
    coefficients = genome.coefficients + np.where(reached, step, 0.0)
    return replace(genome, coefficients=coefficients.astype(np.float32))


def mutate_child(
    genome: Genome,
    rng: np.random.Generator,
    *,
    basis: Basis,
    w_max: float,
    zero_mean: bool = False,
) -> Genome:
    """Add U diag(w ⊙ S) Vᵀ of the *child's own* task vector to every matrix (§3.3).

    The paper's formula read literally replaces the task vector by its scaled components; its
    figure and the released code add, and so do we. The SVD is of the core, whose singular vectors
    are the task vector's in the experts' frame: exact, and as large as the model at full rank.

    Raises:
        UserError: The basis has tails, or the genome Gaussian noise or merges, which the core
            cannot hold.
    """
    if genome.merges:
        raise UserError(
            "`of: child` cannot follow a merge: its task vector is not made of the experts' alone",
            where="variation.mutation.of",
            remedy="use `of: expert`, or crossover.method: linear",
        )
    if genome.noise:
        raise UserError(
            "`of: child` cannot follow Gaussian mutation in one lineage",
            where="variation.mutation",
            remedy="use one of the two",
        )
    refuse_tails(basis)
    low = -w_max if zero_mean else 0.0
    cores = dict(genome.cores)
    for index, slot in enumerate(basis.layout.slots):
        if not slot.is_matrix or not any(basis.layout.ranks[index]):
            continue
        core = child_core(genome, basis, index)
        u, s, vh = torch.linalg.svd(torch.from_numpy(core), full_matrices=False)
        w = torch.from_numpy(rng.uniform(low, w_max, size=len(s)))
        step = ((u * (w * s)) @ vh).numpy()
        cores[slot.name] = (cores.get(slot.name, 0.0) + step).astype(np.float32)
    return replace(genome, cores=cores)


def refuse_tails(basis: Basis) -> None:
    """Raise a `UserError` if a core, and so `mutate_child`, cannot hold what *basis* leaves out."""
    if basis.has_tails:
        raise UserError(
            "`of: child` needs the whole task vector in the basis",
            where="variation.mutation.of",
            remedy="use LoRA experts, genome.rank: full, or `of: expert`",
        )


def child_core(genome: Genome, basis: Basis, slot_index: int) -> np.ndarray:
    """The individual's task vector in one matrix slot, in the slot's frame: [R_b, R_a] float64."""
    slot = basis.layout.slots[slot_index]
    frame = basis.frame(slot.name)
    scales = torch.from_numpy(
        np.concatenate(
            [
                genome.coefficients[segment.start : segment.start + segment.rank]
                for segment in basis.layout.segments[slot_index]
            ]
        ).astype(np.float64)
    )
    core = (frame.left_map.double() * scales) @ frame.right_map.double().T
    if slot.name in genome.cores:
        core = core + torch.from_numpy(genome.cores[slot.name].astype(np.float64))
    return core.numpy()


def mutate_gaussian(genome: Genome, *, seed: int, deviation: float, basis: Basis) -> Genome:
    """Add N(0, deviation²) noise to every matrix, kept as its seed (the paper's ablation).

    The draws themselves are made at materialisation: see `cqd_hub.genome.materialise.normal`.
    """
    scales = np.array(
        [deviation if slot.is_matrix else 0.0 for slot in basis.layout.slots], np.float32
    )
    return replace(genome, noise={**genome.noise, seed: genome.noise.get(seed, 0.0) + scales})
