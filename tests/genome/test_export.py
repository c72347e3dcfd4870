"""Exports loaded by the real transformers, PEFT and mergekit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer

from cqd_hub.errors import RunError, UserError
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
from cqd_hub.genome.export import (
    export_adapter,
    export_checkpoint,
    export_mergekit,
)
from cqd_hub.genome.export.mergekit_yaml import arithmetic
from tests.genome.run_mergekit import merged
from tests.genome.tiny_models import basis_of, edit_json, load, make_base, make_lora

PROMPT = torch.arange(2, 30)[None]


def mutant(basis: Basis, *, child: bool = False, noise: bool = False) -> Genome:
    """Two expert mutations around a crossover per layer; then what else is asked for."""
    rng = np.random.default_rng(1)
    parents = [
        mutate_expert(
            Genome.of_expert(basis.hash, basis.layout, e), rng, basis=basis, expert=e, w_max=0.3
        )
        for e in range(2)
    ]
    groups = basis.layout.groups("layer")
    shares = crossover_weights(rng, groups=groups, mean=1.0, deviation=0.3)
    genome = crossover(parents, shares, basis)
    if child:
        genome = mutate_child(genome, rng, basis=basis, w_max=0.3)
    if noise:
        genome = mutate_gaussian(genome, seed=5, deviation=0.01, basis=basis)
    return genome


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(PROMPT).logits


def truth(basis: Basis, genome: Genome, tmp_path: Path) -> torch.Tensor:
    out = tmp_path / "truth"
    export_checkpoint(genome, Materialiser(basis), out, dtype="float32")
    return logits(load(out))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


# Checkpoint folders


@pytest.mark.parametrize(("tied", "stored"), [(True, "bfloat16"), (False, "float32")])
@pytest.mark.parametrize("dtype", [None, "bfloat16", "float32"])
def test_checkpoint_loads_as_any_other(
    family: Any, tmp_path: Path, tied: bool, stored: str, dtype: Any
) -> None:
    made = family(tied=tied, dtype=stored)
    basis = basis_of(made.base, made.full[:2], tmp_path / "cache", rank=6)
    genome, materialiser = mutant(basis), Materialiser(basis)
    out = tmp_path / "deep" / "out"
    size = export_checkpoint(genome, materialiser, out, dtype=dtype)
    wanted = dtype or stored
    assert json.loads((out / "config.json").read_text())["dtype"] == wanted
    model = load(out)
    assert str(model.dtype) == f"torch.{wanted}"
    expected = materialiser.state(genome, dtype=getattr(torch, wanted))
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert size == sum(tensor.nbytes for tensor in expected.values())
    assert model.generation_config.max_length == 33
    tokenizer = AutoTokenizer.from_pretrained(out)
    chat = [{"role": "user", "content": "<7>"}]
    assert tokenizer.apply_chat_template(chat)["input_ids"] == [2, 7]
    assert not (out / "model.safetensors.index.json").exists()


def test_checkpoint_in_shards(family: Any, tmp_path: Path) -> None:
    made = family()
    basis = basis_of(made.base, made.full[:2], tmp_path / "cache")
    genome, materialiser = mutant(basis), Materialiser(basis)
    out = tmp_path / "out"
    total = export_checkpoint(genome, materialiser, out, shard_size="20KB")
    files = sorted(out.glob("model-*.safetensors"))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(files) > 2
    assert files[-1].name == f"model-{len(files):05d}-of-{len(files):05d}.safetensors"
    assert index["metadata"]["total_size"] == total
    assert set(index["weight_map"].values()) == {file.name for file in files}
    for file in files:
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 20000
    state = load(out).state_dict()
    expected = materialiser.state(genome)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_old_dtype_key_of_the_config_follows(family: Any, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype="bfloat16")
    config = json.loads((base / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    (base / "config.json").write_text(json.dumps(config))
    basis = basis_of(base, [make_lora(base, tmp_path / "lora", seed=1)], tmp_path / "cache")
    genome = Genome.of_expert(basis.hash, basis.layout, 0)
    export_checkpoint(genome, Materialiser(basis), tmp_path / "out", dtype="float32")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["torch_dtype"] == "float32"
    assert "dtype" not in written


# PEFT adapters


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("kinds", "options", "extra"),
    [
        ("lora", {}, {}),
        ("lora", {}, {"child": True}),
        ("full", {"rank": 6, "tail": "drop"}, {}),
        ("full", {"rank": 6}, {}),
        ("full", {}, {"child": True, "noise": True}),
        ("mixed", {"rank": 6}, {}),
    ],
)
def test_exact_adapter_in_peft(
    family: Any,
    tmp_path: Path,
    tied: bool,
    kinds: str,
    options: dict[str, Any],
    extra: dict[str, bool],
) -> None:
    made = family(tied=tied)
    paths = {"lora": made.lora[:2], "full": made.full[:2]}.get(kinds, [made.full[0], made.lora[1]])
    basis = basis_of(made.base, paths, tmp_path / "cache", **options)
    genome = mutant(basis, **extra)
    expected = truth(basis, genome, tmp_path)
    for purpose in ("attach", "merge"):
        out = tmp_path / purpose
        written = export_adapter(genome, basis, out, base_name=str(made.base), purpose=purpose)
        assert written.relative_error == 0
        model = PeftModel.from_pretrained(load(made.base), str(out)).eval()
        if purpose == "merge":
            model = model.merge_and_unload()
        assert distance(logits(model), expected) <= 1e-5
        assert distance(logits(load(made.base)), expected) > 0.05
        size = (out / "adapter_model.safetensors").stat().st_size
        assert written.bytes <= size < written.bytes + 20000


def test_truncated_adapter_states_its_error(family: Any, tmp_path: Path) -> None:
    made = family()
    basis = basis_of(made.base, made.full[:2], tmp_path / "cache")
    genome = mutant(basis)
    state = Materialiser(basis).state(genome)
    zero = Materialiser(basis).state(Genome.of_base(basis.hash, basis.layout))
    matrices = [name for name, tensor in state.items() if tensor.ndim == 2]
    previous = 1.0
    for rank, dtype in ((2, "float32"), (12, "float32"), (24, "bfloat16")):
        out = tmp_path / f"rank{rank}"
        written = export_adapter(
            genome, basis, out, base_name=str(made.base), rank=rank, dtype=dtype, purpose="merge"
        )
        assert written.rank == rank
        merged = PeftModel.from_pretrained(load(made.base), str(out)).merge_and_unload()
        merged = merged.state_dict()
        lost = sum(float((merged[n] - state[n]).square().sum()) for n in state)
        total = sum(float((state[n] - zero[n]).square().sum()) for n in state)
        assert written.relative_error == pytest.approx((lost / total) ** 0.5, rel=1e-3)
        assert written.relative_error < previous
        previous = written.relative_error
        for name in matrices:  # the best of its rank, to the iteration's accuracy
            s = torch.linalg.svdvals(state[name] - zero[name])
            mine = (merged[name] - state[name]).norm()
            assert mine <= 1.05 * s[rank:].norm() + 0.01 * s.norm()


def test_adapter_of_the_base_is_refused(family: Any, tmp_path: Path) -> None:
    made = family()
    basis = basis_of(made.base, made.lora[:2], tmp_path / "cache")
    genome = Genome.of_base(basis.hash, basis.layout)
    with pytest.raises(UserError, match=r"out: no matrix .* \(export a checkpoint\)"):
        export_adapter(genome, basis, tmp_path / "out", base_name="b")
    with pytest.raises(UserError, match="rank: 0 is not a rank"):
        export_adapter(mutant(basis), basis, tmp_path / "out", base_name="b", rank=0)


# mergekit recipes


@pytest.mark.parametrize(
    ("tied", "kinds", "options", "extra"),
    [
        (True, "full", {"rank": 6}, {}),
        (False, "full", {}, {}),
        (True, "full", {}, {"child": True, "noise": True}),
        (False, "lora", {}, {}),
        (True, "mixed", {"rank": 6, "tail": "drop"}, {}),
    ],
)
def test_mergekit_makes_the_same_weights(
    family: Any,
    tmp_path: Path,
    tied: bool,
    kinds: str,
    options: dict[str, Any],
    extra: dict[str, bool],
) -> None:
    made = family(tied=tied)
    paths = {"lora": made.lora[:2], "full": made.full[:2]}.get(kinds, [made.full[0], made.lora[1]])
    basis = basis_of(made.base, paths, tmp_path / "cache", **options)
    genome = mutant(basis, **extra)
    recipe = export_mergekit(genome, basis, tmp_path / "recipe", out_dtype="float32")
    state, expected = merged(recipe, tmp_path), Materialiser(basis).state(genome)
    if tied:
        state.pop("lm_head.weight")
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert distance(state[name], tensor) <= 5e-7, name
    assert (tmp_path / "merged" / "generation_config.json").exists()
    readme = (tmp_path / "recipe" / "README.md").read_text()
    assert f"mergekit-yaml {recipe} MERGED --lora-merge-cache CACHE" in readme


def test_pure_crossover_needs_no_adapter(family: Any, tmp_path: Path) -> None:
    made = family(tied=False)
    basis = basis_of(made.base, made.full[:2], tmp_path / "cache", rank=6)
    experts = [Genome.of_expert(basis.hash, basis.layout, e) for e in range(2)]
    groups = basis.layout.groups("matrix")
    shares = crossover_weights(np.random.default_rng(0), groups=groups, mean=1.0, deviation=0.5)
    genome = crossover(experts, shares, basis)
    recipe = export_mergekit(genome, basis, tmp_path / "recipe", out_dtype="float32")
    assert not (tmp_path / "recipe" / "mutation").exists()
    state = merged(recipe, tmp_path)
    for name, tensor in Materialiser(basis).state(genome).items():
        assert distance(state[name], tensor) <= 5e-7, name
    whole = crossover(experts, np.array([0.25, 0.75]), basis)
    recipe = export_mergekit(whole, basis, tmp_path / "whole")
    assert recipe.read_text().count("weight: 0.25\n") == 1
    assert "filter" not in recipe.read_text()


def test_tiny_weights_are_yaml_numbers() -> None:
    yaml = pytest.importorskip("yaml")
    weights = [("p", np.array([1e-05])), ("q", np.array([1 - 1e-5]))]
    text = arithmetic(["layers.0.weight"], base="b", weights=weights, out_dtype="float32")
    read = [model["parameters"]["weight"] for model in yaml.safe_load(text)["models"]]
    assert read == [1e-05, 1 - 1e-5]


@pytest.mark.parametrize(("sign", "what"), [("+", "an adapter"), ("@", "a revision")])
def test_paths_that_mergekit_would_take_apart(
    family: Any, tmp_path: Path, sign: str, what: str
) -> None:
    made = family()
    basis = basis_of(made.base, made.lora[:2], tmp_path / "cache")
    out = tmp_path / f"a{sign}b" / "out"
    with pytest.raises(UserError, match=rf"which mergekit reads as {what} \(rename or link"):
        export_mergekit(mutant(basis), basis, out)
    assert not out.parent.exists()


# All three: whole or not at all


def exporters(basis: Basis) -> dict[str, Any]:
    genome, materialiser = mutant(basis), Materialiser(basis)
    return {
        "checkpoint": lambda out: export_checkpoint(genome, materialiser, out),
        "adapter": lambda out: export_adapter(genome, basis, out, base_name="b"),
        "mergekit": lambda out: export_mergekit(genome, basis, out),
    }


@pytest.mark.parametrize("kind", ["checkpoint", "adapter", "mergekit"])
def test_failed_export_leaves_nothing(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    made = family()
    basis = basis_of(made.base, made.full[:2], tmp_path / "cache", rank=6)
    export = exporters(basis)[kind]
    room = tmp_path / "room"
    room.mkdir()
    taken = room / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match=r"taken: already exists \(choose another folder"):
        export(taken)
    file = room / "file"
    file.write_text("kept")
    with pytest.raises(UserError, match="file: already exists"):
        export(file)
    with pytest.raises(UserError, match="below: cannot be written"):
        export(file / "below")

    class Usage:
        free = 1000

    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: Usage)
        with pytest.raises(RunError, match=r"full: needs .* MB, 0.00 MB are free \(free some"):
            export(room / "full")

    def broken(self: Path, *rest: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", broken)
        with pytest.raises(RunError, match="No space left on device"):
            export(room / "late")
    assert sorted(path.name for path in room.iterdir()) == ["file", "taken"]
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]
    export(room / "empty")
    assert (room / "empty").is_dir()


def test_shard_size_must_be_a_size(family: Any, tmp_path: Path) -> None:
    made = family()
    basis = basis_of(made.base, made.lora[:2], tmp_path / "cache")
    for size in ("5", "0GB", "GB", "5 miles"):
        with pytest.raises(UserError, match=r"is not a size \(write e.g. 5GB\)"):
            export_checkpoint(mutant(basis), Materialiser(basis), tmp_path / "out", shard_size=size)


def test_edited_base_config_is_what_is_exported(family: Any, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    edit_json(base / "config.json", rms_norm_eps=0.5)
    basis = basis_of(base, [make_lora(base, tmp_path / "lora", seed=1)], tmp_path / "cache")
    genome = Genome.of_expert(basis.hash, basis.layout, 0)
    export_checkpoint(genome, Materialiser(basis), tmp_path / "out")
    assert load(tmp_path / "out").config.rms_norm_eps == 0.5
