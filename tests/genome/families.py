"""A tiny random model of every family that is verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

_COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_HEAD = _COMMON | {"head_dim": 8}
_EXPERTS = _HEAD | {"num_experts_per_tok": 2}


class Family(NamedTuple):
    """How to make one.

    Args:
        label: For people.
        config: Class name of its configuration.
        settings: Of the tiny model.
        special: What its weights have that others do not.
        adapter: Whether a LoRA adapter can carry all of an individual.
        mergekit: Whether mergekit can merge it.
    """

    label: str
    config: str
    settings: dict[str, Any]
    special: str = ""
    adapter: bool = True
    mergekit: bool = True


FAMILIES = {
    "llama": Family("Llama", "LlamaConfig", _COMMON),
    "mistral": Family("Mistral", "MistralConfig", _COMMON | {"sliding_window": None}),
    "qwen2": Family("Qwen2", "Qwen2Config", _COMMON, "biases"),
    "qwen3": Family("Qwen3", "Qwen3Config", _HEAD, "norms of queries and keys"),
    "qwen3_moe": Family(
        "Qwen3-MoE",
        "Qwen3MoeConfig",
        _EXPERTS | {"num_experts": 4, "moe_intermediate_size": 16},
        "mixture, stored per expert",
    ),
    "mixtral": Family(
        "Mixtral",
        "MixtralConfig",
        _EXPERTS | {"num_local_experts": 4, "sliding_window": None},
        "mixture, stored per expert",
    ),
    "gpt_oss": Family(
        "GPT-OSS",
        "GptOssConfig",
        _EXPERTS | {"num_local_experts": 4, "rope_scaling": None},
        "mixture, stored stacked; biases, sinks",
        adapter=False,
    ),
    "glm4_moe": Family(
        "GLM-4-MoE",
        "Glm4MoeConfig",
        _EXPERTS
        | {
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
        },
        "mixture, a router's corrections (buffers)",
        adapter=False,
    ),
    "gemma2": Family("Gemma 2", "Gemma2Config", _HEAD, "norms add 1, tied"),
    "gemma3": Family("Gemma 3", "Gemma3TextConfig", _HEAD, "norms add 1, tied"),
    "phi3": Family("Phi-3", "Phi3Config", _COMMON, "fused projections"),
    "olmo2": Family("OLMo 2", "Olmo2Config", _COMMON, "norms after"),
    "smollm3": Family("SmolLM3", "SmolLM3Config", _COMMON, "tied"),
    "lfm2": Family(
        "LFM2",
        "Lfm2Config",
        _COMMON | {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48},
        "convolutions, tied",
        adapter=False,
    ),
    "gpt2": Family(
        "GPT-2",
        "GPT2Config",
        {
            "vocab_size": 64,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        "transposed (Conv1D), biases, tied",
    ),
    "gpt_neox": Family(
        "GPT-NeoX",
        "GPTNeoXConfig",
        {key: value for key, value in _COMMON.items() if key != "num_key_value_heads"},
        "fused projections, biases",
        mergekit=False,
    ),
}


def make_model(name: str, folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """A base whose logits differ from prompt to prompt, with a tokenizer."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, family.config)(**family.settings)
    model = AutoModelForCausalLM.from_config(config)
    for key, tensor in model.named_parameters():
        if tensor.ndim > 1 and not key.endswith("bias"):
            tensor.data *= 4
        else:
            tensor.data += 0.1 * torch.randn_like(tensor)
        if key.endswith("router.weight"):
            tensor.data *= 4
    for tensor in corrections(model):
        tensor += 0.1 * torch.randn(tensor.shape)
    model.to(dtype).save_pretrained(folder)
    vocabulary = {f"<{i}>": i for i in range(64)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<0>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<0>", eos_token="<1>"
    )
    fast.save_pretrained(folder)
    return folder


def corrections(model: torch.nn.Module) -> list[torch.Tensor]:
    """A router's buffers that are trained by other means."""
    return [tensor for name, tensor in model.named_buffers() if name.endswith("bias")]


def fine_tune(
    base: Path, folder: Path, *, seed: int, dtype: torch.dtype, shard: str = "5GB"
) -> Path:
    """Every tensor moved by 5 % of its spread."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for tensor in corrections(model):
        tensor += 0.01 * torch.randn(tensor.shape)
    for tensor in model.parameters():
        size = 0.05 * float(tensor.detach().std())
        tensor.data += size * torch.randn(tensor.shape)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def adapt(base: Path, folder: Path, *, seed: int) -> Path:
    """A LoRA adapter of all linear layers."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules="all-linear")
    adapted = get_peft_model(model, settings)
    for name, tensor in adapted.named_parameters():
        if ".lora_" in name:
            tensor.data = 0.1 * torch.randn(tensor.shape)
    adapted.save_pretrained(folder)
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """float64 tensors as stored, all shards together."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {name: tensor.double() for name, tensor in load_file(file).items()}
    return found


def merged(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """float64 tensors of the base with an adapter merged by PEFT, under stored names."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    whole = PeftModel.from_pretrained(model, str(adapter)).double().merge_and_unload()
    return dict(revert_weight_conversion(whole, dict(whole.state_dict())))


def by_slot(tensors: dict[str, torch.Tensor], layout: Any) -> dict[str, torch.Tensor]:
    """The same, cut into the layout's slots."""
    return {
        slot.name: (
            tensors[slot.tensor] if slot.index is None else tensors[slot.tensor][slot.index]
        ).reshape(slot.shape)
        for slot in layout.slots
    }
