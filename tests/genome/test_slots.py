"""Stored names, stacks, copies and buffers: every tensor accounted for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine.sequential import SequentialEngine
from cqd_hub.genome import Basis, Genome, Materialiser, build_basis, open_models
from cqd_hub.genome.models.architecture import Architecture
from tests.genome.families import by_slot, fine_tune, make_model, stored
from tests.genome.tiny_models import drop, edit_json, edit_tensors


def opened(base: Path, experts: list[Path], cache: Path, **options: Any) -> Basis:
    return build_basis(*open_models(base, experts, cache=cache), cache=cache, **options)


def expert_state(basis: Basis, expert: int = 0) -> dict[str, torch.Tensor]:
    genome = Genome.of_expert(basis.hash, basis.layout, expert)
    return Materialiser(basis).state(genome, dtype=torch.float32)


def in_memory(folder: Path, to: Path) -> Path:
    """The same weights stored under in-memory names, as mergekit leaves mixtures."""
    shutil.copytree(folder, to)
    for file in to.glob("*.safetensors*"):
        file.unlink()
    model = AutoModelForCausalLM.from_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in model.named_parameters()}
    save_file(state, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_neox"])
@pytest.mark.parametrize("which", ["expert", "base"])
def test_another_naming_is_the_same_model(tmp_path: Path, name: str, which: str) -> None:
    base = make_model(name, tmp_path / "base")
    expert = fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32)
    plain = opened(base, [expert], tmp_path / "a")
    if which == "expert":
        basis = opened(base, [in_memory(expert, tmp_path / "other")], tmp_path / "b")
        truth, found = expert_state(plain), expert_state(basis)
        assert found.keys() == truth.keys()
        assert all(torch.equal(found[name], truth[name]) for name in truth)
        return
    basis = opened(in_memory(base, tmp_path / "other"), [expert], tmp_path / "b")
    engine = SequentialEngine(basis, device="cpu", dtype=torch.float32)
    engine._materialiser.write(Genome.of_expert(basis.hash, basis.layout, 0), engine._parameters)
    truth = dict(AutoModelForCausalLM.from_pretrained(expert).named_parameters())
    assert all(torch.equal(t, truth[name]) for name, t in engine._model.named_parameters())


def test_an_early_gpt2_has_no_prefix_and_stores_its_masks(tmp_path: Path) -> None:
    base = make_model("gpt2", tmp_path / "base")
    expert = fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32)
    truth = expert_state(opened(base, [expert], tmp_path / "a"))

    def early(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        return bare | {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in range(2)}

    edit_tensors(base / "model.safetensors", early)
    basis = opened(base, [expert], tmp_path / "b")
    assert basis.base.inventory.carried == ("h.0.attn.bias", "h.1.attn.bias")
    found = expert_state(basis)
    assert all(torch.equal(found[n.removeprefix("transformer.")], t) for n, t in truth.items())
    engine = SequentialEngine(basis, device="cpu", dtype=torch.float32)
    assert engine._parameters.keys() == found.keys()


def test_a_stored_copy_of_tied_weights_is_no_slot(tmp_path: Path) -> None:
    base = make_model("gemma3", tmp_path / "base")
    expert = fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32)
    before = opened(base, [expert], tmp_path / "a")
    for folder in (base, expert):
        edit_tensors(
            folder / "model.safetensors",
            lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 0},
        )
    basis = opened(base, [expert], tmp_path / "b")
    assert basis.layout.slots == before.layout.slots
    assert basis.base.inventory.aliases == {"lm_head.weight": "model.embed_tokens.weight"}


def test_a_differing_copy_of_tied_weights_is_refused(tmp_path: Path) -> None:
    base = make_model("gemma3", tmp_path / "base")
    expert = fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32)
    edit_tensors(
        expert / "model.safetensors",
        lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1},
    )
    with pytest.raises(UserError, match=r"the base has no tensor lm_head\.weight"):
        opened(base, [expert], tmp_path / "c")


def test_an_architecture_that_transformers_does_not_know(tmp_path: Path) -> None:
    """Slots by shape alone; every stored tensor is one, and an expert comes back exactly."""
    base = make_model("llama", tmp_path / "base")
    expert = fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32)
    for folder, seed in ((base, 0), (expert, 1)):
        torch.manual_seed(seed)
        extra = {
            "model.stack": torch.randn(3, 6, 5),
            "model.conv.weight": torch.randn(8, 4, 3, 3),
            "model.counter": torch.arange(4),
            "model.temperature": torch.randn(()),
        }
        edit_tensors(folder / "model.safetensors", lambda tensors, extra=extra: tensors | extra)
        edit_json(folder / "config.json", model_type="nova", architectures=["NovaForCausalLM"])
    assert Architecture.of(base) is None
    basis = opened(base, [expert], tmp_path / "c", rank=3)
    slots = {slot.name: slot for slot in basis.layout.slots}
    assert slots["model.stack[2]"].shape == (6, 5)
    assert slots["model.conv.weight"].shape == (8, 36)
    assert slots["model.temperature"].shape == (1,)
    assert basis.base.inventory.carried == ("model.counter",)
    tensors = {slot.tensor for slot in basis.layout.slots} | set(basis.base.inventory.carried)
    assert tensors == set(load_file(base / "model.safetensors"))
    truth = by_slot(stored(expert), basis.layout)
    for name, tensor in expert_state(basis).items():
        assert torch.equal(tensor.double(), truth[name]), name


def test_a_model_with_half_its_mixture_is_refused(tmp_path: Path) -> None:
    base = make_model("mixtral", tmp_path / "base")
    expert = fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32)
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    edit_tensors(expert / "model.safetensors", drop(name))
    with pytest.raises(UserError, match=r"it has no tensor .*experts\.3\.w2"):
        opened(base, [expert], tmp_path / "c")


def test_old_rotary_buffers_are_carried_or_ignored(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    expert = fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32)
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    plain = opened(base, [expert], tmp_path / "a").layout.slots
    edit_tensors(expert / "model.safetensors", lambda tensors: tensors | buffer)
    assert opened(base, [expert], tmp_path / "b").layout.slots == plain
    edit_tensors(base / "model.safetensors", lambda tensors: tensors | buffer)
    basis = opened(base, [expert], tmp_path / "c")
    assert basis.layout.slots == plain
    assert basis.base.inventory.carried == tuple(buffer)
    SequentialEngine(basis, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("shape", [(1, 48), (32, 47)])
def test_pieces_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    base = in_memory(make_model("mixtral", tmp_path / "apart"), tmp_path / "base")
    expert = fine_tune(tmp_path / "apart", tmp_path / "expert", seed=1, dtype=torch.float32)
    piece = {"model.layers.0.block_sparse_moe.experts.1.w2.weight": torch.ones(shape)}
    edit_tensors(expert / "model.safetensors", lambda tensors: tensors | piece)
    with pytest.raises(UserError, match=rf"has shape \[{shape[0]}, {shape[1]}\], the base's is"):
        opened(base, [expert], tmp_path / "c")


def test_settings_that_change_the_computation_are_told(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    expert = fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32)
    edit_json(expert / "config.json", rms_norm_eps=1e-2, torch_dtype="float16", use_cache=False)
    notes: list[str] = []
    open_models(base, [expert], note=notes.append)
    told = "expert expert: rms_norm_eps is 0.01, the base's 1e-06; merges use the base's"
    assert notes == [told]
    edit_json(expert / "config.json", num_attention_heads=8, head_dim=4)
    with pytest.raises(UserError, match="head_dim is 4, the base's 8"):
        open_models(base, [expert])


def test_one_file_is_preferred_to_shards_beside_it(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    expert = fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32)
    stale = fine_tune(base, tmp_path / "stale", seed=2, dtype=torch.float32, shard="20KB")
    for file in stale.glob("model*"):
        shutil.copy(file, expert)
    truth = load_file(expert / "model.safetensors")
    found = expert_state(opened(base, [expert], tmp_path / "c"))
    assert all(torch.equal(found[name], tensor) for name, tensor in truth.items())


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({}, "does not map"),
        ({"weight_map": None}, "does not map"),
        ({"weight_map": {"a": 1}}, "does not map"),
        ({"weight_map": {"a": "../base/model.safetensors"}}, "does not map"),
        ({"weight_map": {"a": "/etc/passwd"}}, "does not map"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, index: Any, says: str) -> None:
    base = make_model("llama", tmp_path / "base")
    expert = fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32, shard="20KB")
    (expert / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=says):
        open_models(base, [expert])


def test_shards_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    expert = fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32, shard="20KB")
    path = expert / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.extra"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"no shard holds model\.extra"):
        open_models(base, [expert])


def test_weights_in_eight_bits_and_empty_ones(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    expert = fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32)
    for folder in (base, expert):
        edit_tensors(
            folder / "model.safetensors", lambda tensors: tensors | {"none": torch.empty(0, 5)}
        )
    basis = opened(base, [expert], tmp_path / "c")
    assert basis.base.inventory.carried == ("none",)
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(
        expert / "model.safetensors",
        lambda tensors: tensors | {name: tensors[name].to(torch.float8_e4m3fn)},
    )
    with pytest.raises(UserError, match="F8_E4M3: quantised weights cannot be merged"):
        open_models(base, [expert])


@pytest.mark.parametrize("content", ["[]", "null", "7"])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    base = make_model("llama", tmp_path / "base")
    (base / "config.json").write_text(content)
    with pytest.raises(UserError, match="is no JSON object"):
        open_models(base, [])


def test_a_file_is_no_model_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is missing"):
        open_models(tmp_path / "file", [])
