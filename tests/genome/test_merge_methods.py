"""Every method that mergekit registers: the same as mergekit's own run, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.merge_methods import registered_methods
from mergekit.options import MergeOptions
from safetensors.torch import load_file

from cqd_hub.errors import UserError
from cqd_hub.genome import Basis, Genome, Materialiser, combine, mutate_expert, mutate_gaussian
from cqd_hub.genome.export import export_checkpoint
from cqd_hub.genome.merge import Drawn, Merge, check_method, find_method
from cqd_hub.genome.merge.store import MergeStore
from tests.genome.conftest import Family
from tests.genome.tiny_models import basis_of

NAMES = sorted(method.spec.name for method in registered_methods())
# What makes a method do something else than its default does, and what it cannot do without.
PARAMETERS: dict[str, dict[str, Any]] = {
    "arcee_fusion": {},
    "breadcrumbs": {"density": [0.5, 0.7], "gamma": 0.05},
    "breadcrumbs_ties": {"density": 0.5, "gamma": 0.05, "lambda": 1.2},
    "dare_linear": {},
    "dare_ties": {"normalize": True},
    "della": {},
    "della_linear": {"lambda": 0.9},
    "karcher": {"max_iter": 20},
    "linear": {},
    "model_stock": {"filter_wise": True},
    "multislerp": {"normalize_weights": False},
    "nearswap": {"t": 0.02},
    "nuslerp": {"nuslerp_row_wise": True, "nuslerp_flatten": False},
    "ram": {"epsilon": 0.01},
    "ramplus_tl": {"r": 0.3},
    "sce": {"select_topk": 0.4},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"normalize": True},
    "ties": {"density": [0.3, 0.6], "int8_mask": True},
}
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
WEIGHTS = [0.7, 0.4]


class World(NamedTuple):
    basis: Basis
    base: Path
    parents: tuple[Genome, Genome]
    folders: tuple[Path, Path]
    store: Callable[[], tuple[Materialiser, MergeStore]]


@pytest.fixture(scope="module")
def world(family: Callable[..., Family], tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two parents that no checkpoint of the family is, and their checkpoints."""
    folder = tmp_path_factory.mktemp("world")
    made = family(tied=False)
    basis = basis_of(made.base, made.full[:2], folder / "cache")
    layout = basis.layout
    experts = [Genome.of_expert(basis.hash, layout, number) for number in (0, 1)]
    first = mutate_gaussian(
        combine(experts, np.array([0.8, 0.3]), layout), seed=5, deviation=0.01, basis=basis
    )
    rng = np.random.default_rng(0)
    second = mutate_expert(experts[1], rng, basis=basis, expert=0, w_max=0.9)
    parents, folders = (first, second), (folder / "first", folder / "second")
    for parent, out in zip(parents, folders, strict=True):
        export_checkpoint(parent, Materialiser(basis), out, dtype="float32")
    known = {parent.hash: parent for parent in parents}

    def store() -> tuple[Materialiser, MergeStore]:
        merges = MergeStore(
            tmp_path_factory.mktemp("merges"), budget=10**9, genome_of=known.__getitem__
        )
        return Materialiser(basis, merges=merges), merges

    return World(basis, made.base, parents, folders, store)


def ours(world: World, name: str, parameters: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    materialiser, _ = world.store()
    hashes = [parent.hash for parent in world.parents]
    merge = Merge.make(name, parents=hashes, seed=seed, parameters=parameters)
    return materialiser.state(Genome.of_merge(world.basis.hash, world.basis.layout, merge))


def mergekits(world: World, name: str, parameters: dict[str, Any], out: Path) -> dict[str, Any]:
    """The same as a person would write it for `mergekit-yaml`."""
    specs = {m.spec.name: m.spec for m in registered_methods()}[name].parameters
    shared = {spec.name for spec in specs if spec.scope.value == "shared"}
    models = []
    for number, folder in enumerate(world.folders):
        own = {
            key: value[number] if isinstance(value, list) else value
            for key, value in parameters.items()
            if key not in shared
        }
        models.append({"model": str(folder), "parameters": own})
    config: dict[str, Any] = {
        "merge_method": name,
        "models": models,
        "parameters": {key: value for key, value in parameters.items() if key in shared},
        "dtype": "float32",
    }
    place = find_method(name).base
    if place == "beside":
        config["base_model"] = str(world.base)
    elif place == "first":
        config["base_model"] = str(world.folders[0])
    LoaderCache().loaders.clear()  # mergekit keeps what it has read, by path
    run_merge(
        MergeConfiguration.model_validate(yaml.safe_load(yaml.safe_dump(config))),
        str(out),
        options=MergeOptions(write_model_card=False, copy_tokenizer=False, quiet=True),
    )
    return load_file(out / "model.safetensors")


def weighted(name: str, **more: Any) -> dict[str, Any]:
    """The test's parameters of a method, weights included where it takes any."""
    drawn = {"weight": WEIGHTS} if find_method(name).drawn == "weight" else {}
    return {**PARAMETERS[name], **drawn, **more}


def test_every_method_has_a_case() -> None:
    assert sorted([*PARAMETERS, "passthrough"]) == NAMES


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_a_merge_is_what_mergekit_makes_of_the_parents_checkpoints(
    world: World, name: str, tmp_path: Path
) -> None:
    more = {"density": 1.0} if name in RANDOM else {}  # nothing is dropped, nothing is drawn
    parameters = weighted(name, **more)
    made, expected = ours(world, name, parameters), mergekits(world, name, parameters, tmp_path)
    assert set(made) == set(expected)
    for slot, tensor in made.items():
        assert torch.equal(tensor, expected[slot]), slot
    parent = Materialiser(world.basis).state(world.parents[0])
    moved = [slot for slot in made if not torch.equal(made[slot], parent[slot])]
    assert len(moved) > len(made) / 2


@pytest.mark.parametrize("name", RANDOM)
def test_a_random_merge_drops_and_rescales_as_mergekits_does(
    world: World, name: str, tmp_path: Path
) -> None:
    """The draws differ (ours are made slot by slot), what they are draws of does not."""
    parameters = weighted(name, density=0.4)
    made, expected = ours(world, name, parameters), mergekits(world, name, parameters, tmp_path)
    base = Materialiser(world.basis).state(
        Genome.of_base(world.basis.hash, world.basis.layout), dtype=torch.float32
    )
    for slot in ("model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"):
        mine, theirs = made[slot] - base[slot], expected[slot] - base[slot]
        kept = [(delta.abs() > 1e-6).float().mean().item() for delta in (mine, theirs)]
        # Of two parents, each kept at .4: one or both, 1 - .6²
        assert kept == pytest.approx([0.64, 0.64], abs=0.05)
        assert mine.norm().item() == pytest.approx(theirs.norm().item(), rel=0.1)
        cosine = torch.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0).item()
        assert 0.1 < cosine < 0.9


@pytest.mark.parametrize("name", RANDOM)
def test_a_random_merge_is_replayed_from_its_seed(world: World, name: str) -> None:
    parameters = weighted(name, density=0.4)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    made = ours(world, name, parameters, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    again, other = (ours(world, name, parameters, seed=seed) for seed in (7, 8))
    slot = "model.layers.1.mlp.up_proj.weight"
    assert all(torch.equal(made[name], again[name]) for name in made)
    assert not torch.equal(made[slot], other[slot])


def test_slots_have_draws_of_their_own(world: World) -> None:
    made = ours(world, "dare_linear", {"density": 0.5, "weight": [1.0, 0.0], "rescale": False})
    base = Materialiser(world.basis).state(Genome.of_base(world.basis.hash, world.basis.layout))
    kept = [
        made[slot].ne(base[slot])
        for slot in made
        if slot.endswith(("k_proj.weight", "v_proj.weight"))
    ]
    for one in range(len(kept)):
        for two in range(one):
            assert 0.3 < (kept[one] == kept[two]).float().mean() < 0.7


@pytest.mark.parametrize(("name", "drawn"), [("ties", "weight"), ("slerp", "t")])
def test_a_drawn_parameter_differs_between_groups_of_slots(
    world: World, name: str, drawn: str
) -> None:
    layout = world.basis.layout
    groups = layout.groups("layer")
    shares = np.linspace(0.2, 0.7, int(groups.max()) + 1)
    rows = (tuple(1 - shares), tuple(shares)) if drawn == "weight" else (tuple(shares),)
    materialiser, _ = world.store()
    hashes = [parent.hash for parent in world.parents]
    merge = Merge.make(
        name, parents=hashes, seed=0, parameters={}, drawn=Drawn(drawn, "layer", rows)
    )
    assert Merge(merge.text) == merge
    assert Merge(merge.text).drawn == merge.drawn
    made = materialiser.state(Genome.of_merge(world.basis.hash, layout, merge))
    for group, share in enumerate(shares):
        value = [1 - share, share] if drawn == "weight" else share
        uniform = ours(world, name, {drawn: value})
        for index, slot in enumerate(layout.slots):
            same = torch.equal(made[slot.name], uniform[slot.name])
            assert same == (groups[index] == group) or slot.name.endswith("norm.weight")


@pytest.mark.parametrize(
    ("name", "parameters", "problem", "remedy"),
    [
        ("tyes", {}, "no merge method 'tyes'", "did you mean 'ties'?"),
        ("zzz", {}, "no merge method 'zzz'", "known: arcee_fusion, "),
        ("passthrough", {}, "passthrough does not merge two parents", "choose another"),
        ("ties", {"densty": 1}, "ties has no parameter 'densty'", "did you mean 'density'?"),
        ("arcee_fusion", {"x": 1}, "has no parameter 'x'", "it has none"),
        ("sce", {"qqq": 1}, "has no parameter 'qqq'", "it has int8_mask, select_topk"),
        ("ties", {"int8_mask": 3}, "should be a valid boolean", ""),
        ("karcher", {"max_iter": 1.5}, "should be a valid integer", ""),
        ("ties", {"density": 1.5}, "is a proportion, not 1.5", "use 0 to 1"),
        ("ties", {"density": [0.1, 0.2, 0.3]}, "a number or one for each parent", ""),
        ("ties", {"lambda": [1.0, 1.0]}, "takes one number", ""),
        ("nearswap", {}, "nearswap needs the parameter 't'", "add it"),
        ("della", {"density": 0.1}, "density +/- epsilon is in (0, 1)", "change its parameters"),
    ],
)
def test_what_the_registry_does_not_allow_is_refused_in_one_line(
    name: str, parameters: dict[str, Any], problem: str, remedy: str
) -> None:
    with pytest.raises(UserError) as caught:
        check_method(name, parameters)
    line = str(caught.value)
    assert problem in line
    assert remedy in line
    assert line.startswith("variation.crossover")
    assert "\n" not in line


@pytest.mark.parametrize("name", sorted(set(PARAMETERS) - {"linear"}))
def test_what_the_registry_allows_is_found(name: str) -> None:
    assert check_method(name, PARAMETERS[name]).name == name


def test_what_comes_out_infinite_is_refused(world: World) -> None:
    with pytest.raises(UserError, match=r"task_arithmetic makes NaN or infinity of lm_head"):
        ours(world, "task_arithmetic", {"weight": 1e39})
