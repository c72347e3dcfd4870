"""Tiny random bases of several families, adapters that PEFT saves, and what PEFT makes of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from cqd_hub.errors import UserError
from cqd_hub.genome.models.adapters import AdapterExpert, open_adapter
from cqd_hub.genome.models.experts import LowRank
from cqd_hub.genome.models.opening import open_base

VOCABULARY = 40
COMMON = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA = COMMON | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}


def _llama(tied: bool, **options: Any) -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**(LLAMA | options), tie_word_embeddings=tied)
    )


def _gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**COMMON, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    )


def _neox() -> Any:
    shape = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**shape))


def _mixtral() -> Any:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**LLAMA, num_local_experts=3, num_experts_per_tok=2)
    )


def _whisper() -> Any:
    return transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            **COMMON,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            num_mel_bins=6,
            max_source_positions=10,
            max_target_positions=12,
            decoder_start_token_id=1,
        )
    )


def _vit() -> Any:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=8,
            patch_size=4,
        )
    )


MAKERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: _llama(False),
    "tied": lambda: _llama(True),
    "biases": lambda: _llama(False, attention_bias=True, mlp_bias=True),
    "gpt2": _gpt2,
    "neox": _neox,
    "mixtral": _mixtral,
    "whisper": _whisper,
    "vit": _vit,
}
CLASSES = {"whisper": "WhisperForConditionalGeneration", "vit": "ViTForImageClassification"}


@cache
def base_of(name: str) -> Path:
    """The folder of a tiny random base (made once per process; `tests.conftest` removes it)."""
    folder = Path(tempfile.mkdtemp(dir=Path(os.environ["CQD_HUB_CACHE"]).parent)) / name
    torch.manual_seed(0)
    model = MAKERS[name]()
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def load(base: Path) -> Any:
    kind = getattr(transformers, CLASSES.get(base.name, "AutoModelForCausalLM"))
    return kind.from_pretrained(base).eval()


def train(base: Path, folder: Path, config: Any, *, rows: int | None = None) -> Any:
    """Save an adapter whose trainable parameters were all moved; return the adapted model."""
    torch.manual_seed(1)
    model = load(base)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    adapted = get_peft_model(model, config)
    done = set()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            moves = parameter.requires_grad or ".lora_" in name
            if moves and parameter.data_ptr() not in done:
                done.add(parameter.data_ptr())  # tied factors are views of one storage
                parameter.add_(0.1 * torch.randn(parameter.shape))
    adapted.save_pretrained(folder)
    return adapted.eval()


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**({"r": 3, "lora_alpha": 5, "target_modules": ["q_proj"]} | options))


def opened(base: Path, adapter: Path, notes: list[str] | None = None) -> Any:
    note = (lambda line: None) if notes is None else notes.append
    return open_adapter(open_base(base), adapter, cache=adapter.parent / "cache", note=note)


def merged(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """In-memory name → float64 weight of PEFT's merged model."""
    model = PeftModel.from_pretrained(load(base), str(adapter)).double()
    return dict(model.merge_and_unload(safe_merge=True).named_parameters())


def dense(delta: LowRank | torch.Tensor | None) -> torch.Tensor | float:
    if delta is None:
        return 0.0
    return delta.up @ delta.down if isinstance(delta, LowRank) else delta


def forms(expert: AdapterExpert) -> dict[str, str]:
    found = {slot.name: expert.form(slot) for slot in expert.base.slots}
    return {name: form for name, form in found.items() if form is not None}


def check(expert: Any, wanted: dict[str, torch.Tensor]) -> None:
    """Compare base + τ and the expert's own weights with *wanted* in every slot."""
    tolerance = 2e-6
    seen = set()
    for parameter, tensor in wanted.items():
        slot = expert.base.slot_of(parameter) or expert.base.slot_of(f"{parameter}[0]")
        assert slot is not None, parameter
        seen.add(slot.name)
        tensor = tensor.detach().reshape(slot.shape)
        delta = expert.task_vector(slot)
        kind = {LowRank: "factors", torch.Tensor: "dense", type(None): None}[type(delta)]
        assert kind == expert.form(slot)
        base = expert.base.weight(slot).double()
        for own in (base + dense(delta), expert.weight(slot).double()):
            torch.testing.assert_close(own, tensor.double(), atol=tolerance, rtol=tolerance)
        if delta is None:
            assert torch.equal(tensor.double(), base)
    assert seen == {slot.name for slot in expert.base.slots}


def refused(base: Path, adapter: Path, notes: list[str] | None = None) -> UserError:
    with pytest.raises(UserError) as caught:
        opened(base, adapter, notes)
    assert "\n" not in str(caught.value)
    assert caught.value.where.startswith(str(adapter))
    assert caught.value.remedy
    assert not list((adapter.parent / "cache").rglob("*.safetensors"))
    return caught.value
