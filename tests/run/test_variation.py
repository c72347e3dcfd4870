"""Children from the record alone: the same seed and index make the same child."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from cqd_hub.errors import UserError
from cqd_hub.genome import Basis, Genome, build_basis, crossover, mutate_expert, mutate_gaussian
from cqd_hub.randomness import generator
from cqd_hub.recipe.schema import Variation
from cqd_hub.run.variation import make_child
from cqd_hub.search import Proposal


def parents(basis: Basis) -> tuple[Genome, Genome]:
    return (
        Genome.of_expert(basis.hash, basis.layout, 0),
        Genome.of_expert(basis.hash, basis.layout, 1),
    )


def child(
    basis: Basis, index: int = 7, seed: int = 3, expert: int = 2, **settings: Any
) -> tuple[Genome, dict[str, Any]]:
    proposal = Proposal(individual=index, generation=1, skill=0, parents=(0, 1))
    return make_child(
        proposal,
        parents(basis),
        variation=Variation.model_validate(settings),
        basis=basis,
        expert=expert,
        seed=seed,
    )


MUTATIONS: list[dict[str, Any]] = [
    {"kind": "none"},
    {"kind": "svd"},
    {"kind": "svd", "zero_mean": True, "w_max": 0.7},
    *({"kind": "svd", "per": per} for per in ("matrix", "layer", "model")),
    {"kind": "svd", "of": "child"},
    {"kind": "gaussian", "deviation": 0.01},
]


@pytest.mark.parametrize(
    ("per", "mutation"), list(itertools.product(("model", "layer", "matrix"), MUTATIONS))
)
def test_a_child_is_replayed_from_seed_and_index(
    basis: Basis, per: str, mutation: dict[str, Any]
) -> None:
    settings = {"crossover": {"per": per, "deviation": 0.3}, "mutation": mutation}
    made, lineage = child(basis, **settings)
    again, same = child(basis, **settings)
    assert (made.hash, lineage) == (again.hash, same)
    for other in (child(basis, index=8, **settings), child(basis, seed=4, **settings)):
        assert other[0].hash != made.hash
    assert Genome.from_bytes(made.to_bytes()).hash == made.hash
    assert json.loads(json.dumps(lineage)) == lineage


@pytest.mark.parametrize("per", ["model", "layer", "matrix"])
def test_shares_of_the_record_are_those_of_the_child(basis: Basis, per: str) -> None:
    made, lineage = child(
        basis, crossover={"per": per, "mean": 1.0, "deviation": 0.4}, mutation={"kind": "none"}
    )
    record = lineage["crossover"]
    assert record["method"] == "linear"
    groups = basis.layout.groups(per)  # type: ignore[arg-type]
    shares = np.array(record["shares"])
    assert shares.shape == (2, len(set(groups.tolist())))
    assert shares.shape[1] == {"model": 1, "layer": 4, "matrix": len(basis.layout.slots)}[per]
    assert np.allclose(shares.sum(0), 1)
    rebuilt = crossover(parents(basis), shares[:, groups], basis)
    assert rebuilt.hash == made.hash
    assert (record["per"], record["mean"], record["deviation"]) == (per, 1.0, 0.4)
    assert lineage["parents"] == [0, 1]
    assert lineage["seed"] == 3
    assert lineage["mutation"] == {"kind": "none"}


def test_the_record_holds_every_parameter_even_defaults(basis: Basis) -> None:
    assert child(basis)[1]["mutation"] == {
        "kind": "svd",
        "of": "expert",
        "w_max": 0.3,
        "zero_mean": False,
        "per": "direction",
        "expert": 2,
    }
    _, lineage = child(basis, mutation={"kind": "svd", "of": "child"})
    assert lineage["mutation"] == {"kind": "svd", "of": "child", "w_max": 0.3, "zero_mean": False}


MERGES: list[Any] = [
    "ties",
    {"method": "ties", "parameters": {"density": 0.5, "weight": [0.3, 0.9]}},
    {"method": "dare_ties", "per": "matrix", "deviation": 0.3, "parameters": {"density": 0.5}},
    "karcher",
    {"method": "slerp", "per": "layer", "deviation": 0.4},
    {"method": "nearswap", "parameters": {"t": 0.001}},
]


@pytest.mark.parametrize("cross", MERGES)
@pytest.mark.parametrize("kind", ["none", "svd", "gaussian"])
def test_a_merged_child_is_replayed_from_seed_and_index(
    basis: Basis, cross: Any, kind: str
) -> None:
    settings = {"crossover": cross, "mutation": kind}
    made, lineage = child(basis, **settings)
    again, same = child(basis, **settings)
    assert (made.hash, lineage) == (again.hash, same)
    for other in (child(basis, index=8, **settings), child(basis, seed=4, **settings)):
        assert other[0].hash != made.hash
    assert json.loads(json.dumps(lineage)) == lineage
    ((merge, weights),) = made.merges.items()
    assert (weights == 1).all()
    assert merge.parents == tuple(parent.hash for parent in parents(basis))
    record = lineage["crossover"]
    assert record["merge"] == merge.id
    assert (record["method"], record["seed"]) == (merge.method, merge.seed)
    assert record["parameters"] == merge.parameters


def test_shares_become_a_merges_weights(basis: Basis) -> None:
    cross = {"method": "ties", "per": "layer", "deviation": 0.4}
    made, lineage = child(basis, crossover=cross, mutation="none")
    linear, plain = child(basis, crossover={**cross, "method": "linear"}, mutation="none")
    ((merge, _),) = made.merges.items()
    assert lineage["crossover"]["shares"] == plain["crossover"]["shares"]
    assert merge.drawn is not None
    assert (merge.drawn.name, merge.drawn.per) == ("weight", "layer")
    assert [list(row) for row in merge.drawn.values] == lineage["crossover"]["shares"]
    assert not linear.merges


def test_the_second_parents_share_becomes_slerps_t(basis: Basis) -> None:
    made, lineage = child(basis, crossover={"method": "slerp", "per": "layer"}, mutation="none")
    ((merge, _),) = made.merges.items()
    assert merge.drawn is not None
    assert merge.drawn.name == "t"
    assert [list(row) for row in merge.drawn.values] == lineage["crossover"]["shares"][1:]


@pytest.mark.parametrize(
    "cross",
    [
        "sce",
        {"method": "slerp", "parameters": {"t": 0.3}},
        {"method": "ties", "parameters": {"weight": [0.2, 0.8]}},
    ],
)
def test_what_draws_nothing_records_no_shares(basis: Basis, cross: Any) -> None:
    made, lineage = child(basis, crossover=cross, mutation="none")
    ((merge, _),) = made.merges.items()
    assert merge.drawn is None
    assert "shares" not in lineage["crossover"]


def test_svd_mutation_moves_only_the_active_experts_matrices(basis: Basis) -> None:
    plain, _ = child(basis, mutation={"kind": "none"})
    for per in ("direction", "matrix", "layer", "model"):
        made, lineage = child(basis, mutation={"kind": "svd", "per": per})
        step = made.coefficients - plain.coefficients
        reached = (basis.layout.expert_of == 2) & basis.layout.in_matrix
        assert not step[~reached].any()
        assert (step[reached] >= 0).all()
        assert (step[reached] <= 0.3 + 1e-6).all()
        draws = len(np.unique(step[reached].round(6)))
        assert draws == {"model": 1, "layer": 2, "matrix": 14}.get(per, draws)
        assert per != "direction" or draws > 40
        replayed = mutate_expert(
            plain,
            generator(3, 7, "mutation"),
            basis=basis,
            expert=lineage["mutation"]["expert"],
            w_max=lineage["mutation"]["w_max"],
            granularity=None if per == "direction" else per,
        )
        assert replayed.hash == made.hash
    centred, _ = child(basis, mutation={"kind": "svd", "zero_mean": True})
    assert (centred.coefficients - plain.coefficients).min() < -0.1


def test_gaussian_mutation_is_replayed_from_its_seed(basis: Basis) -> None:
    plain, _ = child(basis, mutation={"kind": "none"})
    made, lineage = child(basis, mutation={"kind": "gaussian", "deviation": 0.02})
    record = lineage["mutation"]
    assert (record["kind"], record["deviation"]) == ("gaussian", 0.02)
    assert list(made.noise) == [record["noise"]]
    rebuilt = mutate_gaussian(plain, seed=record["noise"], deviation=0.02, basis=basis)
    assert rebuilt.hash == made.hash


def test_mutation_of_the_child_is_held_in_cores(basis: Basis) -> None:
    plain, _ = child(basis, mutation={"kind": "none"})
    made, _ = child(basis, mutation={"kind": "svd", "of": "child"})
    assert np.array_equal(made.coefficients, plain.coefficients)
    matrices = {s.name for s in basis.layout.slots if s.is_matrix}
    assert set(made.cores) <= matrices
    assert len(made.cores) >= 14


def test_mutation_of_the_child_is_refused_where_it_cannot_be_held(basis: Basis) -> None:
    tailed = build_basis(basis.base, basis.experts, rank=4)
    with pytest.raises(UserError, match="needs the whole task vector in the basis"):
        child(tailed, mutation={"kind": "svd", "of": "child"})
