"""A child's own crossover, and individuals over a grown vocabulary, run by the real mergekit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from cqd_hub.errors import UserError
from cqd_hub.genome import (
    Basis,
    Genome,
    Materialiser,
    build_basis,
    crossover,
    crossover_weights,
    mutate_child,
    mutate_expert,
    mutate_gaussian,
    open_models,
)
from cqd_hub.genome.export import export_checkpoint, export_crossover, export_mergekit
from cqd_hub.genome.merge import Drawn, Merge
from cqd_hub.genome.merge.store import MergeStore
from tests.genome.families import adapt, fine_tune, make_model
from tests.genome.run_mergekit import merged
from tests.genome.test_vocabulary import grown
from tests.genome.tiny_models import basis_of, edit_json, edit_tensors, load


def parents_of(basis: Basis) -> list[Genome]:
    """An expert as it is, and a mutant."""
    one, other = (Genome.of_expert(basis.hash, basis.layout, e) for e in range(2))
    rng = np.random.default_rng(0)
    return [one, mutate_expert(other, rng, basis=basis, expert=1, w_max=0.3)]


def drawn_shares(basis: Basis, per: Any) -> np.ndarray:
    rng = np.random.default_rng(7)
    return crossover_weights(rng, groups=basis.layout.groups(per), mean=1.0, deviation=0.3)


def mutated(genome: Genome, basis: Basis, kind: str) -> Genome:
    rng = np.random.default_rng(3)
    if kind == "expert":
        return mutate_expert(genome, rng, basis=basis, expert=0, w_max=0.3)
    if kind == "child":
        return mutate_child(genome, rng, basis=basis, w_max=0.3)
    if kind == "gaussian":
        return mutate_gaussian(genome, seed=3, deviation=0.01, basis=basis)
    return genome


def check(state: dict[str, torch.Tensor], materialiser: Materialiser, child: Genome) -> None:
    expected = materialiser.state(child, dtype=torch.float32)
    for name, tensor in expected.items():
        assert (state[name] - tensor).norm() <= 5e-7 * tensor.norm(), name


@pytest.mark.parametrize(
    ("kinds", "mutation", "holder"),
    [
        ("full", "none", None),
        ("full", "expert", "config.json"),
        ("lora", "expert", "adapter_config.json"),
        ("lora", "child", "adapter_config.json"),
        ("full", "gaussian", "config.json"),
    ],
)
def test_linear(family: Any, tmp_path: Path, kinds: str, mutation: str, holder: str | None) -> None:
    made = family(tied=kinds == "full")
    paths = made.full[:2] if kinds == "full" else made.lora[:2]
    options = {"rank": 6} if mutation != "child" and kinds == "full" else {}
    basis = basis_of(made.base, paths, tmp_path / "cache", **options)
    materialiser, parents = Materialiser(basis), parents_of(basis)
    shares = drawn_shares(basis, "layer")
    child = mutated(crossover(parents, shares, basis), basis, mutation)
    out = tmp_path / "how"
    recipe = export_crossover(child, parents, shares, materialiser, out, out_dtype="float32")
    names = {path.name for path in out.iterdir()}
    # An unchanged full fine-tune is named where it lies; adapters are merged first.
    assert ("parent-1" in names) == (kinds == "lora")
    assert "parent-2" in names
    assert ("mutation" in names) == (holder is not None)
    assert holder is None or (out / "mutation" / holder).exists()
    text = recipe.read_text()
    assert text.count("filter") < 2 * len(basis.layout.slots) / 3  # layers, not tensors
    check(merged(recipe, tmp_path), materialiser, child)


def test_shares_within_a_mixture(tmp_path: Path) -> None:
    """mergekit has one tensor for all experts of a layer: what differs inside goes beside."""
    base = make_model("mixtral", tmp_path / "base")
    experts = [
        fine_tune(base, tmp_path / f"full{seed}", seed=seed, dtype=torch.float32) for seed in (1, 2)
    ]
    basis = basis_of(base, experts, tmp_path / "cache", rank=6)
    materialiser, parents = Materialiser(basis), parents_of(basis)
    shares = drawn_shares(basis, "matrix")
    child = crossover(parents, shares, basis)
    recipe = export_crossover(
        child, parents, shares, materialiser, tmp_path / "how", out_dtype="float32"
    )
    state = merged(recipe, tmp_path)
    export_checkpoint(child, materialiser, tmp_path / "truth", dtype="float32")
    for name, tensor in load(tmp_path / "truth").state_dict().items():
        assert (state[name] - tensor).norm() <= 5e-7 * tensor.norm(), name
    merge = Merge.make("ties", parents=["a", "b"], seed=0, parameters={"density": 0.5})
    with pytest.raises(UserError, match=r"ties was run matrix by matrix; mergekit joins"):
        export_crossover(child, parents, merge, materialiser, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def store_of(basis: Basis, folder: Path, genomes: Sequence[Genome]) -> MergeStore:
    known = {genome.hash: genome for genome in genomes}
    return MergeStore(folder, budget=10**9, genome_of=known.__getitem__)


@pytest.mark.parametrize(
    ("method", "parameters", "drawn", "mutation"),
    [
        ("ties", {"density": [0.5, 0.7]}, "weight", "none"),
        ("ties", {"density": 0.5}, "weight", "gaussian"),
        ("slerp", {}, "t", "expert"),
        ("karcher", {}, None, "none"),
    ],
)
def test_other_methods(
    family: Any,
    tmp_path: Path,
    method: str,
    parameters: dict[str, Any],
    drawn: str | None,
    mutation: str,
) -> None:
    made = family(tied=False)
    basis = basis_of(made.base, made.full[:2], tmp_path / "cache", rank=6)
    parents = parents_of(basis)
    groups = basis.layout.groups("layer")
    shares = drawn_shares(basis, "layer")[:, np.unique(groups, return_index=True)[1]]
    rows = shares if drawn == "weight" else shares[1:]
    merge = Merge.make(
        method,
        parents=[parent.hash for parent in parents],
        seed=5,
        parameters=parameters,
        drawn=Drawn(drawn, "layer", tuple(map(tuple, rows.tolist()))) if drawn else None,
    )
    store = store_of(basis, tmp_path / "merges", parents)
    materialiser = Materialiser(basis, merges=store)
    child = mutated(Genome.of_merge(basis.hash, basis.layout, merge), basis, mutation)
    out = tmp_path / "how"
    recipe = export_crossover(
        child, parents, merge, materialiser, out, out_dtype="float32", merges=store
    )
    assert f"merge_method: {method}\n" in recipe.read_text()
    if mutation == "none":
        check(merged(recipe, tmp_path), materialiser, child)
        assert not (out / "child.yml").exists()
        return
    readme = (out / "README.md").read_text()
    assert f"`{out / 'crossover'}`" in readme
    merged(recipe, out, to="crossover")
    check(merged(out / "child.yml", tmp_path), materialiser, child)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_recipe_over_a_grown_vocabulary(tmp_path: Path, name: str) -> None:
    base = make_model(name, tmp_path / "base")
    paths = [
        grown(base, tmp_path / "one", ["<a>"], seed=1),
        fine_tune(base, tmp_path / "plain", seed=2, dtype=torch.float32),
        adapt(base, tmp_path / "lora", seed=3),
    ]
    cache = tmp_path / "cache"
    basis = build_basis(*open_models(base, paths, cache=cache), rank=6, cache=cache)
    parents = [Genome.of_expert(basis.hash, basis.layout, e) for e in range(3)]
    child = crossover(parents, np.array([0.5, 0.3, 0.2]), basis)
    recipe = export_mergekit(child, basis, tmp_path / "recipe", out_dtype="float32")
    state = merged(recipe, tmp_path)
    assert state["model.embed_tokens.weight"].shape[0] == 65
    check(state, Materialiser(basis), child)
    text = recipe.read_text()
    assert str(tmp_path / "recipe" / "base") in text
    assert str(tmp_path / "one") in text  # has all rows
    assert str(tmp_path / "plain") not in text  # has not


def test_tokenizer_and_chat_template_of_a_grown_vocabulary(tmp_path: Path) -> None:
    """The tokenizer is the expert's that added tokens, the chat template the base's."""
    base = make_model("llama", tmp_path / "base")
    (base / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (base / "LICENSE").write_text("free")
    expert = grown(base, tmp_path / "one", ["<a>"], seed=1)
    (expert / "chat_template.jinja").unlink(missing_ok=True)
    (base / "vocab.txt").write_text("only the base's own")
    basis = build_basis(*open_models(base, [expert], cache=tmp_path), cache=tmp_path)
    genome = Genome.of_expert(basis.hash, basis.layout, 0)
    out = tmp_path / "out"
    export_checkpoint(genome, Materialiser(basis), out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.convert_tokens_to_ids("<a>") == 64
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "<7> <a>"}])
    assert chat["input_ids"] == [7, 64]
    assert load(out).config.vocab_size == 65
    assert (out / "LICENSE").read_text() == "free"
    assert not (out / "vocab.txt").exists()


def test_only_the_bases_own_vocabulary_grows_in_the_config(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    expert = grown(base, tmp_path / "one", ["<a>"], seed=1)
    inner: dict[str, Any] = {
        "text_config": {"vocab_size": 64},
        "codec": {"vocab_size": 8, "deep": {"x": 64}},
    }
    edit_json(base / "config.json", parts=inner)
    basis = basis_of(base, [expert], tmp_path / "cache")
    genome = Genome.of_expert(basis.hash, basis.layout, 0)
    export_checkpoint(genome, Materialiser(basis), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == 65
    assert config["parts"]["text_config"] == {"vocab_size": 65}
    assert config["parts"]["codec"] == inner["codec"]


@pytest.mark.parametrize("change", ["parents", "how"])
def test_what_another_crossover_left_is_not_taken(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Of the same child, killed while the second parent was written."""
    made = family()
    basis = basis_of(made.base, made.lora[:2], tmp_path / "cache")
    materialiser = Materialiser(basis)
    parents = parents_of(basis)
    shares = np.full((2, len(basis.layout.slots)), 0.5)
    child = crossover(parents, shares, basis)

    def export(parents: Sequence[Genome], shares: np.ndarray) -> None:
        export_crossover(child, parents, shares, materialiser, tmp_path / "out")

    real, seen = Materialiser.weight, list[Genome]()

    def stopped(materialiser: Materialiser, genome: Genome, slot: int, **options: Any) -> Any:
        if genome is parents[1]:
            raise KeyboardInterrupt
        seen.append(genome)
        return real(materialiser, genome, slot, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Materialiser, "weight", stopped)
        with pytest.raises(KeyboardInterrupt):
            export(parents, shares)
    first = tmp_path / ".out.partial" / "parent-1" / "model.safetensors"
    edit_tensors(first, lambda tensors: {n: torch.zeros_like(t) for n, t in tensors.items()})
    if change == "parents":
        parents = parents[::-1]
    else:
        shares = shares * np.float64(0.5)
    export(parents, shares)
    folder = tmp_path / "out" / "parent-1"
    expected = materialiser.state(parents[0])
    state = load(folder).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
