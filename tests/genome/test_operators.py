from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cqd_hub.errors import UserError
from cqd_hub.genome import (
    Genome,
    crossover,
    crossover_weights,
    mutate_child,
    mutate_expert,
    mutate_gaussian,
)
from tests.genome.tiny_models import basis_of


def test_shares_sum_to_one_and_are_equal_within_a_group() -> None:
    groups = np.array([0, 0, 1, 2, 1])
    for seed in range(200):
        rng = np.random.default_rng(seed)
        shares = crossover_weights(rng, groups=groups, mean=0.0, deviation=1.0)
        assert shares.sum(0) == pytest.approx(np.ones(5))
        assert np.abs(shares).max() < 60  # no pair whose sum is near zero
        assert np.array_equal(shares[:, 0], shares[:, 1])
        assert np.array_equal(shares[:, 2], shares[:, 4])
        assert not np.array_equal(shares[:, 0], shares[:, 3])


def test_paper_shares_have_the_paper_spread() -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(20000)
    shares = crossover_weights(rng, groups=groups, mean=1.0, deviation=0.03)[0]
    assert shares.mean() == pytest.approx(0.5, abs=5e-4)
    assert shares.std() == pytest.approx(0.0106, abs=3e-4)


def test_groups_follow_layers_and_matrices(family: Any, tmp_path: Path) -> None:
    layout = basis_of(family().base, family().lora[:1], tmp_path).layout
    names = [slot.name for slot in layout.slots]
    layer = dict(zip(names, layout.groups("layer"), strict=True))
    one = {group for name, group in layer.items() if ".layers.1." in name}
    assert len(one) == 1
    assert len(set(layer.values())) == 4  # two layers, embedding, last norm
    assert len(set(layout.groups("matrix"))) == len(names)
    assert set(layout.groups("model")) == {0}


@pytest.mark.parametrize("zero_mean", [False, True])
def test_expert_mutation_moves_one_expert_in_matrices_only(
    family: Any, tmp_path: Path, zero_mean: bool
) -> None:
    basis = basis_of(family().base, family().full[:2], tmp_path, rank=6)
    layout = basis.layout
    parent = Genome.of_expert(basis.hash, layout, 0)
    child = mutate_expert(
        parent, np.random.default_rng(0), basis=basis, expert=1, w_max=0.3, zero_mean=zero_mean
    )
    step = child.coefficients - parent.coefficients
    moved = (layout.expert_of == 1) & layout.in_matrix
    assert not step[~moved].any()
    assert len(set(step[moved])) > 0.99 * moved.sum()
    assert step[moved].mean() == pytest.approx(0.0 if zero_mean else 0.15, abs=0.06)
    assert step[moved].min() < (-0.28 if zero_mean else 0.02)
    assert 0.28 < step[moved].max() <= 0.3


def test_shared_draws_follow_the_granularity(family: Any, tmp_path: Path) -> None:
    basis = basis_of(family().base, family().full[:1], tmp_path)
    parent = Genome.of_base(basis.hash, basis.layout)
    for granularity, count in (("model", 1), ("layer", 3), ("matrix", 15)):
        rng = np.random.default_rng(0)
        child = mutate_expert(
            parent, rng, basis=basis, expert=0, w_max=0.3, granularity=granularity
        )
        assert len(set(child.coefficients[basis.layout.in_matrix])) == count


def test_child_mutation_needs_the_whole_task_vector(family: Any, tmp_path: Path) -> None:
    basis = basis_of(family().base, family().full[:1], tmp_path, rank=6)
    genome = Genome.of_expert(basis.hash, basis.layout, 0)
    with pytest.raises(UserError, match=r"variation.mutation.of: .*genome.rank: full"):
        mutate_child(genome, np.random.default_rng(0), basis=basis, w_max=0.3)


def test_child_mutation_refuses_a_noisy_parent(family: Any, tmp_path: Path) -> None:
    basis = basis_of(family().base, family().lora[:1], tmp_path)
    genome = Genome.of_expert(basis.hash, basis.layout, 0)
    genome = mutate_gaussian(genome, seed=1, deviation=0.1, basis=basis)
    with pytest.raises(UserError, match=r"variation.mutation: .*Gaussian"):
        mutate_child(genome, np.random.default_rng(0), basis=basis, w_max=0.3)


def test_operators_leave_their_parents_alone(family: Any, tmp_path: Path) -> None:
    basis = basis_of(family().base, family().lora[:2], tmp_path)
    rng = np.random.default_rng(0)
    first = mutate_child(Genome.of_expert(basis.hash, basis.layout, 0), rng, basis=basis, w_max=0.3)
    first = mutate_gaussian(first, seed=1, deviation=0.1, basis=basis)
    second = Genome.of_expert(basis.hash, basis.layout, 1)
    before = first.hash, second.hash
    crossover([first, second], np.array([0.5, 0.5]), basis)
    mutate_expert(first, rng, basis=basis, expert=0, w_max=0.3)
    mutate_child(second, rng, basis=basis, w_max=0.3)
    mutate_gaussian(first, seed=1, deviation=0.1, basis=basis)
    assert (first.hash, second.hash) == before
