"""Stored names, stacks, copies and buffers: every tensor accounted for."""

from __future__ import annotations

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
