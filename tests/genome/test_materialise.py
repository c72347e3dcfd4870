from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cqd_hub.genome import (
    Basis,
    Genome,
    Materialiser,
    crossover,
    mutate_child,
    mutate_expert,
    mutate_gaussian,
)
from tests.genome.tiny_models import basis_of, load


def individuals(basis: Basis) -> list[Genome]:
    """An expert, a mutant, and a grandchild using everything the basis allows."""
    experts = [Genome.of_expert(basis.hash, basis.layout, e) for e in range(2)]
    rng = np.random.default_rng(0)
    mutant = mutate_expert(experts[0], rng, basis=basis, expert=1, w_max=0.3)
    child = crossover([mutant, experts[1]], np.array([0.7, 0.3]), basis)
    if not basis.has_tails:
        child = mutate_child(child, rng, basis=basis, w_max=0.3)
    return [experts[0], mutant, mutate_gaussian(child, seed=3, deviation=0.01, basis=basis)]


@pytest.mark.parametrize("options", [{}, {"rank": 6}, {"rank": 6, "tail": "drop"}])
def test_every_write_starts_from_the_pristine_base(
    family: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    made = family(dtype="bfloat16")
    basis = basis_of(made.base, made.full[:2], tmp_path, **options)
    model, materialiser = load(made.base), Materialiser(basis)
    parameters = dict(model.named_parameters())
    first, second, third = individuals(basis)
    for genome in (third, second, first, third):
        materialiser.write(genome, parameters)
        fresh = Materialiser(basis).state(genome)
        assert all(torch.equal(parameters[name].data, fresh[name]) for name in fresh)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_half_precision_weights_are_near_the_rounded_exact_ones(
    family: Any, tmp_path: Path
) -> None:
    made = family(dtype="bfloat16")
    for options in ({}, {"rank": 6}, {"rank": 6, "tail": "drop"}):
        basis = basis_of(made.base, made.full[:2], tmp_path, **options)
        materialiser = Materialiser(basis)
        for genome in individuals(basis):
            half = materialiser.state(genome)
            exact = materialiser.state(genome, dtype=torch.float32)
            for name, truth in exact.items():
                unavoidable = (truth.bfloat16().float() - truth).norm()
                assert (half[name].float() - truth).norm() <= 1.05 * unavoidable, name


def test_without_bfloat16_hardware_the_exact_weights_are_rounded_once(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Materialiser, "_multiplies_bfloat16", False)
    made = family(dtype="bfloat16")
    basis = basis_of(made.base, made.full[:2], tmp_path, rank=6)
    materialiser = Materialiser(basis)
    for genome in individuals(basis):
        exact = materialiser.state(genome, dtype=torch.float32)
        for name, tensor in materialiser.state(genome).items():
            assert torch.equal(tensor, exact[name].bfloat16()), name


def test_blocks_do_not_show(family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = family()
    basis = basis_of(made.base, [made.full[0], made.lora[0]], tmp_path, rank=6)
    genome = individuals(basis)[2]
    whole = Materialiser(basis).state(genome)
    monkeypatch.setattr("cqd_hub.genome.materialise._BLOCK", 5 * 32)
    pieces = Materialiser(basis).state(genome)
    for name in whole:
        torch.testing.assert_close(pieces[name], whole[name], rtol=1e-5, atol=1e-6)


def test_one_tensor_equals_the_whole_state(family: Any, tmp_path: Path) -> None:
    made = family()
    basis = basis_of(made.base, made.lora[:2], tmp_path)
    materialiser, genome = Materialiser(basis), individuals(basis)[2]
    state = materialiser.state(genome)
    for index, slot in enumerate(basis.layout.slots):
        assert torch.equal(materialiser.weight(genome, index), state[slot.name])
