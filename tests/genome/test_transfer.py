"""Genomes moved to other bases: the same weights, or a refusal."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cqd_hub.errors import UserError
from cqd_hub.genome import Basis, Genome, Materialiser, build_basis, mutate_child, open_models
from cqd_hub.genome.merge import Merge
from cqd_hub.genome.transfer import check_genome, layout_as_json, layout_of_json, transfer
from cqd_hub.randomness import generator
from tests.conftest import Models


@pytest.fixture(scope="module")
def narrow(models: Models) -> Basis:
    """Of two experts."""
    return build_basis(*open_models(models.base, [models.full[0], models.lora]))


@pytest.fixture(scope="module")
def wide(models: Models) -> Basis:
    """Of the same in another order, with one more between them."""
    return build_basis(*open_models(models.base, [models.lora, models.full[2], models.full[0]]))


def some(basis: Basis, **parts: object) -> Genome:
    values = generator(0, 0, "test").uniform(-0.5, 1.5, basis.layout.size).astype(np.float32)
    return Genome(basis.hash, values, **parts)  # type: ignore[arg-type]


def differ(one: Genome, first: Basis, other: Genome, second: Basis) -> float:
    left = Materialiser(first).state(one, dtype=torch.float32)
    right = Materialiser(second).state(other, dtype=torch.float32)
    assert left.keys() == right.keys()
    return max(float((left[n] - right[n]).norm() / left[n].norm()) for n in left)


def test_to_more_experts_in_another_order(narrow: Basis, wide: Basis) -> None:
    genome = some(narrow)
    moved = transfer(genome, narrow.layout, wide, where="x")
    assert moved.basis == wide.hash
    assert differ(genome, narrow, moved, wide) < 1e-6


def test_back_again(narrow: Basis, wide: Basis) -> None:
    genome = some(narrow)
    there = transfer(genome, narrow.layout, wide, where="x")
    assert transfer(there, wide.layout, narrow, where="x").hash == genome.hash
    assert transfer(genome, narrow.layout, narrow, where="x") is genome


def test_an_expert_in_use_must_be_there(narrow: Basis, wide: Basis) -> None:
    with pytest.raises(UserError, match=r"not among the recipe's.*add it to `experts`"):
        transfer(some(wide), wide.layout, narrow, where="x")


def test_cores_are_turned_into_the_wider_frame(narrow: Basis, wide: Basis) -> None:
    genome = mutate_child(some(narrow), generator(1, 0, "test"), basis=narrow, w_max=0.3)
    assert genome.cores
    moved = transfer(genome, narrow.layout, wide, where="x")
    assert differ(genome, narrow, moved, wide) < 1e-5


def test_cores_need_their_own_factors(narrow: Basis, wide: Basis, models: Models) -> None:
    genome = mutate_child(some(narrow), generator(1, 0, "test"), basis=narrow, w_max=0.3)
    strange = Genome("0" * 64, genome.coefficients, genome.cores)
    with pytest.raises(UserError, match="the very factors"):
        transfer(strange, narrow.layout, wide, where="x")


def test_noise_keeps_its_draws(narrow: Basis, wide: Basis) -> None:
    genome = some(narrow, noise={7: np.full(len(narrow.layout.slots), 0.01, np.float32)})
    moved = transfer(genome, narrow.layout, wide, where="x")
    assert differ(genome, narrow, moved, wide) < 1e-6


def test_merges_stay(narrow: Basis, wide: Basis) -> None:
    merge = Merge.make("ties", parents=["a", "b"], seed=0, parameters={})
    genome = Genome.of_merge(narrow.hash, narrow.layout, merge)
    with pytest.raises(UserError, match="holds merges by ties"):
        transfer(genome, narrow.layout, wide, where="x")
    with pytest.raises(UserError, match="holds merges by ties"):
        transfer(genome, narrow.layout, narrow, where="x")


def test_other_ranks(models: Models, narrow: Basis) -> None:
    opened = open_models(models.base, [models.full[0], models.lora])
    truncated, dropped = (build_basis(*opened, rank=4, tail=tail) for tail in ("tied", "drop"))
    whole = Genome(narrow.hash, np.float32(0.25) * np.ones(narrow.layout.size, np.float32))
    moved = transfer(whole, narrow.layout, truncated, where="x")
    assert differ(whole, narrow, moved, truncated) < 1e-6
    back = transfer(moved, truncated.layout, narrow, where="x")
    assert differ(whole, narrow, back, narrow) < 1e-6
    for source, genome, target in (
        (narrow, some(narrow), truncated),
        (truncated, some(truncated), narrow),
        (narrow, whole, dropped),
        (dropped, some(dropped), truncated),
    ):
        with pytest.raises(UserError, match=r"genome\.rank and genome\.tail"):
            transfer(genome, source.layout, target, where="x")


def test_layouts_survive_json(wide: Basis) -> None:
    assert layout_of_json(json.loads(json.dumps(layout_as_json(wide.layout)))) == wide.layout


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("slots", {}),
        ("slots", []),
        ("slots", [["a", [2, 2], "matrix", "a"]]),
        ("slots", [["a", [2, 2], "vector", "a", None]]),
        ("slots", [["a", [2, 2], "matrix", "a", "0"]]),
        ("slots", [["a", [0, 2], "matrix", "a", None]]),
        ("slots", [["a", [True, 2], "matrix", "a", None]]),
        ("slots", [["a", [2, 2], "matrix", "a", None]] * 2),
        ("experts", []),
        ("experts", [1, 2, 3]),
        ("experts", ["a", "a", "b"]),
        ("ranks", []),
        ("tails", [[1, 1, 1]]),
    ],
)
def test_layouts_that_are_none(wide: Basis, key: str, value: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        layout_of_json(layout_as_json(wide.layout) | {key: value})
    with pytest.raises(ValueError, match="no object"):
        layout_of_json([])


def test_ranks_within_their_slots(wide: Basis) -> None:
    record = layout_as_json(wide.layout)
    for rank in (-1, 10**9, 1.0, True):
        record["ranks"][0][0] = rank
        with pytest.raises(ValueError, match="rank"):
            layout_of_json(record)


def test_genomes_that_do_not_fit(wide: Basis, narrow: Basis) -> None:
    check_genome(some(wide), wide.layout)
    with pytest.raises(ValueError, match="coefficients"):
        check_genome(some(narrow), wide.layout)
    for part in (
        {"cores": {"nowhere": np.zeros((1, 1), np.float32)}},
        {"cores": {wide.layout.slots[0].name: np.zeros((1, 1), np.float32)}},
        {"noise": {1: np.full(len(wide.layout.slots), np.nan, np.float32)}},
        {"noise": {1: np.zeros(len(wide.layout.slots))}},
    ):
        with pytest.raises(ValueError, match=r"core|noise"):
            check_genome(some(wide, **part), wide.layout)
