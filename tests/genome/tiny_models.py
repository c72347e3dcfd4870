"""Tiny random models and real PEFT adapters on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

from cqd_hub.genome import Basis, build_basis, open_models

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def make_base(folder: Path, *, tied: bool = True, dtype: str = "float32", seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(**SHAPE, tie_word_embeddings=tied)
    model = LlamaForCausalLM(config)
    for name, tensor in model.named_parameters():
        if "norm" in name:
            tensor.data += 0.1 * torch.randn_like(tensor)
        else:
            tensor.data *= 5  # the default spread is too small for logits that differ
    model.to(getattr(torch, dtype))
    model.generation_config.max_length = 33
    model.save_pretrained(folder)
    vocabulary = {f"<{i}>": i for i in range(SHAPE["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<0>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = FastTokenizer(tokenizer_object=tokenizer, unk_token="<0>", eos_token="<1>")
    fast.chat_template = "{% for m in messages %}<2> {{ m['content'] }} {% endfor %}"
    fast.save_pretrained(folder)
    return folder


def make_full(base: Path, folder: Path, *, seed: int, spread: float = 0.05) -> Path:
    """Every tensor moved by *spread* of its own standard deviation, norms by *spread*."""
    torch.manual_seed(seed)
    model = load(base)
    for name, tensor in model.named_parameters():
        size = spread * (1.0 if "norm" in name else float(tensor.detach().float().std()))
        tensor.data = (tensor.data.float() + size * torch.randn(tensor.shape)).to(tensor.dtype)
    model.save_pretrained(folder)
    return folder


def make_lora(base: Path, folder: Path, *, seed: int, **options: Any) -> Path:
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"} | options
    model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, tensor in model.named_parameters():
        if ".lora_" in name:
            tensor.data = 0.1 * torch.randn(tensor.shape)
    model.save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def weights(folder: Path, base: Path) -> dict[str, torch.Tensor]:
    """float64 weights of a model folder, or of *base* with an adapter folder merged by PEFT."""
    if (folder / "adapter_config.json").exists():
        model = load(base, dtype=torch.float64)
        state = (
            PeftModel.from_pretrained(model, str(folder)).double().merge_and_unload().state_dict()
        )
    else:
        state = load(folder, dtype=torch.float64).state_dict()
    if json.loads((base / "config.json").read_text())["tie_word_embeddings"]:
        state.pop("lm_head.weight", None)
    return {name: tensor.double() for name, tensor in state.items()}


def basis_of(base: Path, experts: list[Path], cache: Path, **options: Any) -> Basis:
    return build_basis(*open_models(base, experts, cache=cache), cache=cache, **options)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop(*names: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {n: t for n, t in tensors.items() if n not in names}


def edit_tensors(path: Path, change: Any) -> None:
    """Rewrite a safetensors file with what *change* returns for its dict."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.unlink()
    save_file(change(tensors), path, metadata={"format": "pt"})
