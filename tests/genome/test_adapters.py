"""Adapters against PEFT: base plus task vector is what PEFT itself merges."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cqd_hub.genome.models.adapters import AdapterExpert
from cqd_hub.genome.models.experts import Base
from cqd_hub.genome.models.vocabulary import Vocabulary
from tests.genome.tiny_adapters import (
    VOCABULARY,
    base_of,
    check,
    dense,
    forms,
    load,
    lora,
    merged,
    opened,
    train,
)
from tests.genome.tiny_models import edit_json, edit_tensors

pytestmark = pytest.mark.filterwarnings("ignore")

NATIVE: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "linear": ("llama", {"target_modules": "all-linear"}, {"factors"}),
    "head": ("llama", {"target_modules": ["lm_head", "up_proj"]}, {"factors"}),
    "patterns": (
        "llama",
        {
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 2, "^model.layers.1.mlp.up_proj": 5, "^up_proj": 7},
            "alpha_pattern": {r"layers\.0\.self_attn\.(q|k)_proj": 9, "k_proj": 2, "proj": 11},
            "use_rslora": True,
        },
        {"factors"},
    ),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}, {"factors"}),
    "embedding whole": (
        "llama",
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"factors", "dense"},
    ),
    "norms": (
        "llama",
        {"modules_to_save": ["input_layernorm", "model.norm"]},
        {"factors", "dense"},
    ),
    "whole block": ("llama", {"modules_to_save": ["mlp"]}, {"factors", "dense"}),
    "tokens": ("llama", {"trainable_token_indices": [3, 17, 5]}, {"factors"}),
    "tokens of both": (
        "llama",
        {"trainable_token_indices": {"embed_tokens": [4], "lm_head": [6, 1]}},
        {"factors"},
    ),
    "tied tokens": ("tied", {"trainable_token_indices": [3, 17]}, {"factors"}),
    "tied whole": (
        "tied",
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"factors", "dense"},
    ),
    "lora_bias": (
        "biases",
        {"target_modules": ["q_proj", "up_proj"], "lora_bias": True, "alpha_pattern": {"up": 3}},
        {"factors", "dense"},
    ),
    "biases": ("biases", {"bias": "all"}, {"factors", "dense"}),
    "their biases": ("biases", {"bias": "lora_only"}, {"factors", "dense"}),
    "biases and modules": (
        "biases",
        {"bias": "all", "modules_to_save": ["down_proj"]},
        {"factors", "dense"},
    ),
    "dora": ("llama", {"target_modules": "all-linear", "use_dora": True}, {"dense"}),
    "embedding dora": ("llama", {"target_modules": ["embed_tokens"], "use_dora": True}, {"dense"}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc", "c_proj"]}, {"factors"}),
    "conv1d dora": ("gpt2", {"target_modules": ["c_attn"], "use_dora": True}, {"dense"}),
    "conv1d biases": (
        "gpt2",
        {"target_modules": ["c_attn", "wpe"], "bias": "all"},
        {"factors", "dense"},
    ),
    "neox": ("neox", {"target_modules": ["query_key_value", "embed_out"]}, {"factors"}),
    "convolution": ("whisper", {"target_modules": ["conv1", "conv2", "q_proj"]}, {"factors"}),
    "convolution dora": ("whisper", {"target_modules": ["conv2"], "use_dora": True}, {"dense"}),
    "convolution 2d": (
        "vit",
        {"target_modules": ["projection"], "lora_bias": True},
        {"factors", "dense"},
    ),
    "mica": ("llama", {"init_lora_weights": "mica"}, {"factors"}),
    "orthogonal": ("llama", {"r": 4, "init_lora_weights": "orthogonal"}, {"factors"}),
}


@pytest.mark.parametrize("case", NATIVE)
def test_native(case: str, tmp_path: Path) -> None:
    name, options, kinds = NATIVE[case]
    train(base_of(name), tmp_path / "adapter", lora(**options))
    notes: list[str] = []
    expert = opened(base_of(name), tmp_path / "adapter", notes)
    assert isinstance(expert, AdapterExpert)
    assert set(forms(expert).values()) == kinds
    assert notes == []
    check(expert, merged(base_of(name), tmp_path / "adapter"))


def test_older_spellings(tmp_path: Path) -> None:
    """Names that hold the adapter's name, or the wrapper's, mean the same."""
    base, adapter = base_of("biases"), tmp_path / "adapter"
    options = {"modules_to_save": ["lm_head"], "bias": "lora_only", "use_dora": True}
    train(base, adapter, lora(**options))
    wanted = merged(base, adapter)

    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed = {}
        for name, tensor in tensors.items():
            name = name.replace(".lora_A.", ".lora_A.default.").replace(".base_layer.", ".")
            name = name.replace("lora_magnitude_vector", "lora_magnitude_vector.default.weight")
            renamed[name.replace("lm_head.", "lm_head.modules_to_save.")] = tensor
        frozen = torch.zeros(VOCABULARY, 16)
        return renamed | {"base_model.model.lm_head.original_module.weight": frozen}

    edit_tensors(adapter / "adapter_model.safetensors", rename)
    check(opened(base, adapter), wanted)


def test_older_names_of_a_mixture(tmp_path: Path) -> None:
    """An adapter of single experts fits a base that stores them singly."""
    base, adapter = base_of("mixtral"), tmp_path / "adapter"
    train(base, adapter, lora(target_modules=["q_proj"], alpha_pattern={"w2": 7}))
    module = "model.layers.1.block_sparse_moe.experts.2.w2"
    down, up = torch.randn(3, 24), torch.randn(16, 3)
    names = {"lora_A": down, "lora_B": up}
    edit_tensors(
        adapter / "adapter_model.safetensors",
        lambda tensors: (
            tensors | {f"base_model.model.{module}.{n}.weight": t for n, t in names.items()}
        ),
    )
    expert = opened(base, adapter)
    slot = expert.base.slot_of(f"{module}.weight")
    torch.testing.assert_close(dense(expert.task_vector(slot)), up @ down * 7 / 3)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [VOCABULARY + 3, VOCABULARY - 4])
def test_resized_vocabulary(tied: bool, rows: int, tmp_path: Path) -> None:
    """Saved whole; lacking rows are the base's, surplus ones are cut or carried by the base."""
    base, adapter = base_of("tied" if tied else "llama"), tmp_path / "adapter"
    config = lora(base_model_name_or_path=str(base))
    model = train(base, adapter, config, rows=rows).merge_and_unload()
    names = ["model.embed_tokens.weight"] + ["lm_head.weight"] * (not tied)
    expert = opened(base, adapter)
    for name in names:
        slot = expert.base.slot_of(name)
        own, wanted = expert.base.weight(slot).clone(), model.get_parameter(name).detach()
        assert expert.form(slot) == "dense"
        assert expert.rows(slot) == rows
        assert torch.equal(expert.stored_rows(slot), wanted)
        shared = min(rows, VOCABULARY)
        delta = torch.zeros_like(own)
        delta[:shared] = wanted[:shared] - own[:shared]
        assert torch.equal(expert.task_vector(slot), delta)
        own[:shared] = wanted[:shared]
        assert torch.equal(expert.weight(slot), own)


@pytest.mark.parametrize("indices", [[3, 41], {"embed_tokens": [41, 3]}])
@pytest.mark.parametrize("name", ["tied", "llama"])
def test_trained_rows_of_added_tokens(name: str, indices: Any, tmp_path: Path) -> None:
    base, adapter, rows = base_of(name), tmp_path / "adapter", VOCABULARY + 3
    config = lora(trainable_token_indices=indices, base_model_name_or_path=str(base))
    model = train(base, adapter, config, rows=rows).merge_and_unload()
    expert = opened(base, adapter)
    slot = expert.base.slot_of("model.embed_tokens.weight")
    assert expert.rows(slot) == rows
    wanted = model.get_parameter("model.embed_tokens.weight")
    torch.testing.assert_close(expert.stored_rows(slot), wanted.detach())
    delta = expert.task_vector(slot)
    assert [int(row) for row in delta.any(1).nonzero()] == [3]


def test_frozen_copies_are_no_change(tmp_path: Path) -> None:
    """PEFT saves an embedding with its factors, in the dtype of the training."""
    base, adapter = base_of("biases"), tmp_path / "adapter"
    train(base, adapter, lora(target_modules=["embed_tokens", "k_proj"], bias="lora_only"))
    exact = opened(base, adapter)
    bias = "base_model.model.model.layers.0.self_attn.k_proj.base_layer.bias"
    own = exact.base.weight(exact.base.slot_of("model.layers.0.self_attn.k_proj.bias"))

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "base_model.model.model.embed_tokens.base_layer.weight"
        return tensors | {name: tensors[name].bfloat16(), bias: own}

    edit_tensors(adapter / "adapter_model.safetensors", change)
    expert = opened(base, adapter)
    kinds = forms(expert)
    assert kinds.pop("model.layers.1.self_attn.k_proj.bias") == "dense"
    assert set(kinds.values()) == {"factors"}
    assert "model.layers.0.self_attn.k_proj.bias" not in kinds
    slot = expert.base.slot_of("model.embed_tokens.weight")
    assert torch.equal(expert.weight(slot), exact.weight(slot))


def test_older_names_than_the_base_s(tmp_path: Path) -> None:
    """Names that transformers would rename on loading are found under their new ones."""
    base, adapter = tmp_path / "mixtral", tmp_path / "adapter"
    model = load(base_of("mixtral"))
    model.config.save_pretrained(base)
    save_file(dict(model.named_parameters()), base / "model.safetensors")
    train(base_of("mixtral"), adapter, lora(target_modules=["q_proj"]))
    module = "model.layers.0.block_sparse_moe.gate"
    factors = {"lora_A": torch.randn(3, 16), "lora_B": torch.randn(3, 3)}
    edit_tensors(
        adapter / "adapter_model.safetensors",
        lambda tensors: (
            tensors | {f"base_model.model.{module}.{name}.weight": t for name, t in factors.items()}
        ),
    )
    expert = opened(base, adapter)
    slot = expert.base.slot_of("model.layers.0.mlp.gate.weight")
    wanted = factors["lora_B"] @ factors["lora_A"] * 5 / 3
    torch.testing.assert_close(dense(expert.task_vector(slot)), wanted)


def test_forms_need_no_data(tmp_path: Path) -> None:
    train(base_of("llama"), tmp_path / "adapter", lora(modules_to_save=["mlp"]))
    expert = opened(base_of("llama"), tmp_path / "adapter")
    (tmp_path / "adapter/adapter_model.safetensors").unlink()
    assert set(forms(expert).values()) == {"factors", "dense"}


def test_architecture_that_transformers_does_not_know(tmp_path: Path) -> None:
    """Stored names and the adapter's own config have to do."""
    base, adapter = shutil.copytree(base_of("gpt2"), tmp_path / "base"), tmp_path / "adapter"
    options = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    train(base_of("gpt2"), adapter, lora(**options))
    wanted = merged(base_of("gpt2"), adapter)
    edit_json(base / "config.json", model_type="novel", architectures=["NovelForCausalLM"])
    expert = opened(base, adapter)
    assert expert.base.stored.architecture is None
    check(expert, wanted)


def test_extended_base(tmp_path: Path) -> None:
    """An adapter of the plain vocabulary, on a base grown for another expert."""
    base = base_of("llama")
    options = {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}
    train(base, tmp_path / "adapter", lora(**options))
    train(base, tmp_path / "plain", lora(target_modules=["embed_tokens", "lm_head"]))
    ends = frozenset(("model.embed_tokens.weight", "lm_head.weight"))
    edit_tensors(
        tmp_path / "plain/adapter_model.safetensors",
        lambda tensors: {n: t for n, t in tensors.items() if ".base_layer." not in n},
    )
    for folder in ("adapter", "plain"):
        expert = opened(base, tmp_path / folder)
        grown = Base(expert.base.stored, Vocabulary(VOCABULARY + 2, ends, base))
        longer = AdapterExpert(grown, expert.checkpoint)
        for name in ends:
            short, long = expert.base.slot_of(name), grown.slot_of(name)
            assert long.shape[0] == VOCABULARY + 2
            delta = dense(longer.task_vector(long))
            assert torch.equal(delta[:-2], dense(expert.task_vector(short)))
            assert not delta[-2:].any()
            assert torch.equal(longer.weight(long)[:-2], expert.weight(short))


def test_lora_of_both_tied_ends(tmp_path: Path) -> None:
    """Tied factors count once, as in the adapted model (PEFT's merge adds them twice)."""
    base, adapter = base_of("tied"), tmp_path / "adapter"
    config = lora(target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True)
    adapted = train(base, adapter, config)
    expert = opened(base, adapter)
    slot = expert.base.slot_of("model.embed_tokens.weight")
    assert expert.form(slot) == "factors"
    model = load(base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(expert.weight(expert.base.slot_of(name)))
        ids = torch.arange(3, 15).unsqueeze(0)
        torch.testing.assert_close(model(ids).logits, adapted(ids).logits, atol=2e-5, rtol=2e-5)


def test_untouched_and_half_precision(tmp_path: Path) -> None:
    base, adapter = base_of("llama"), tmp_path / "adapter"
    train(base, adapter, lora(modules_to_save=["lm_head"]))
    edit_tensors(
        adapter / "adapter_model.safetensors",
        lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()},
    )
    expert = opened(base, adapter)
    stored = load_file(adapter / "adapter_model.safetensors")
    head = expert.base.slot_of("lm_head.weight")
    assert torch.equal(expert.weight(head), stored["base_model.model.lm_head.weight"])
    query = expert.base.slot_of("model.layers.0.self_attn.q_proj.weight")
    assert {part.dtype for part in expert.task_vector(query)} == {torch.float32}
    norm = expert.base.slot_of("model.norm.weight")
    assert expert.form(norm) is None
    assert expert.task_vector(norm) is None
    assert torch.equal(expert.weight(norm), expert.base.weight(norm))
    assert expert.path == adapter
