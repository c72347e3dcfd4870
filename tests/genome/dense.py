"""Dense float64 arithmetic to compare genomes with."""

from __future__ import annotations

import numpy as np
import torch

from cqd_hub.genome import (
    Basis,
    Genome,
    Materialiser,
    crossover,
    crossover_weights,
    mutate_child,
    mutate_expert,
    mutate_gaussian,
)
from cqd_hub.genome.materialise import normal
from cqd_hub.genome.models.experts import is_adapter
from tests.genome.families import by_slot, merged, stored

Dense = dict[str, torch.Tensor]
LINEAGE = (
    "crossover model",
    "expert",
    "crossover layer",
    "expert zero-mean",
    "crossover matrix",
    "child",
    "crossover wide",
    "child zero-mean",
    "gaussian",
    "expert per layer",
)


class Reference:
    """Task vectors as plain float64 matrices."""

    def __init__(self, basis: Basis, tail: str) -> None:
        self.basis = basis
        folder = basis.base.checkpoint.path
        self.base = by_slot(stored(folder), basis.layout)
        self.experts: list[Dense] = []
        self.tails: list[Dense] = []
        for number, expert in enumerate(basis.experts):
            whole = merged(folder, expert.path) if is_adapter(expert) else stored(expert.path)
            whole = by_slot(whole, basis.layout)
            tau = {name: whole[name] - self.base[name] for name in self.base}
            products = {
                name: f.up.double() @ f.down.double() for name, f in basis.factors[number].items()
            }
            self.tails.append({name: tau[name] - products[name] for name in products})
            if tail == "drop":
                tau |= products
            self.experts.append(tau)

    def matrices(self) -> list[int]:
        return [i for i, slot in enumerate(self.basis.layout.slots) if slot.is_matrix]

    def crossed(self, parents: list[Dense], shares: np.ndarray) -> Dense:
        return {
            slot.name: sum(
                float(shares[p, i]) * parent[slot.name] for p, parent in enumerate(parents)
            )
            for i, slot in enumerate(self.basis.layout.slots)
        }

    def expert_mutated(self, tau: Dense, expert: int, step: np.ndarray) -> Dense:
        result = dict(tau)
        for row in self.basis.layout.segments:
            segment = row[expert]
            name = self.basis.layout.slots[segment.slot].name
            if name not in self.basis.factors[expert]:
                continue
            up, down = (part.double() for part in self.basis.factors[expert][name])
            w = torch.from_numpy(step[segment.start : segment.stop])
            result[name] = result[name] + (up * w[: segment.rank]) @ down
            if segment.tail:
                result[name] = result[name] + w[-1] * self.tails[expert][name]
        return result

    def child_mutated(
        self, tau: Dense, rng: np.random.Generator, w_max: float, low: float
    ) -> Dense:
        result = dict(tau)
        for index in self.matrices():
            ranks = sum(self.basis.layout.ranks[index])
            slot = self.basis.layout.slots[index]
            if not ranks:
                continue
            u, s, vh = torch.linalg.svd(tau[slot.name], full_matrices=False)
            count = min(ranks, *slot.shape)
            w = torch.from_numpy(rng.uniform(low, w_max, size=count))
            step = (u[:, :count] * (w * s[:count])) @ vh[:count]
            result[slot.name] = tau[slot.name] + step
        return result

    def error(self, tau: Dense, state: Dense) -> float:
        """The worst tensor's ‖difference‖ / ‖W‖."""
        return max(
            float((self.base[n] + tau[n] - state[n].double()).norm() / self.base[n].norm())
            for n in self.base
        )


def check_lineage(basis: Basis, *, tail: str = "tied", bound: float = 1e-6) -> Genome:
    """Experts, then ten operations, each compared with dense arithmetic; return the last child."""
    layout, reference, materialiser = basis.layout, Reference(basis, tail), Materialiser(basis)
    genomes = [Genome.of_expert(basis.hash, layout, e) for e in range(3)]
    dense = list(reference.experts)
    for genome, tau in zip(genomes, dense, strict=True):
        assert reference.error(tau, materialiser.state(genome, dtype=torch.float32)) < bound
    genome, tau = genomes[0], dense[0]
    for step, operation in enumerate(LINEAGE):
        rng = np.random.default_rng(step)
        low = -0.3 if "zero-mean" in operation else 0.0
        kind, _, detail = operation.partition(" ")
        if kind == "crossover":
            wide = detail == "wide"
            groups = layout.groups("model" if wide else detail)
            shares = crossover_weights(rng, groups=groups, mean=1.0, deviation=1.0 if wide else 0.3)
            other = 1 + step % 2
            genome = crossover([genome, genomes[other]], shares, basis)
            tau = reference.crossed([tau, dense[other]], shares)
        elif kind == "gaussian":
            genome = mutate_gaussian(genome, seed=7, deviation=0.01, basis=basis)
            for index in reference.matrices():
                slot = layout.slots[index]
                tau[slot.name] = tau[slot.name] + 0.01 * normal(7, index, slot.shape).double()
        elif kind == "child" and not basis.has_tails:
            genome = mutate_child(genome, rng, basis=basis, w_max=0.3, zero_mean=low < 0)
            tau = reference.child_mutated(tau, np.random.default_rng(step), 0.3, low)
        else:
            before = genome.coefficients.astype(np.float64)
            genome = mutate_expert(
                genome,
                rng,
                basis=basis,
                expert=step % 3,
                w_max=0.3,
                zero_mean=low < 0,
                granularity="layer" if detail == "per layer" else None,
            )
            tau = reference.expert_mutated(tau, step % 3, genome.coefficients - before)
        assert reference.error(tau, materialiser.state(genome, dtype=torch.float32)) < bound, step
        assert Genome.from_bytes(genome.to_bytes()).hash == genome.hash
    return genome
