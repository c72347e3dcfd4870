"""Shared by all tests: caches in a temporary folder, and a family of tiny random models."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from cqd_hub.genome import Basis

_TEXT = [
    "the quick brown fox jumps over the lazy dog and then it sleeps. ",
    "question: what is two plus three? answer: five\nquestion: which is larger? answer: this one\n",
    "def add(a, b):\n    return a + b\n\n",
    "SELECT name FROM pets WHERE age > 3;\ncat notes.txt | wc -l\n",
]


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # a worker of xdist: its parent has set all this
        return
    folder = tempfile.mkdtemp(prefix="cqd-hub-tests-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["CQD_HUB_CACHE"] = f"{folder}/cache"
    os.environ["HF_DATASETS_CACHE"] = f"{folder}/datasets"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("OMP_NUM_THREADS", "1")


class Models(NamedTuple):
    """Folders of a base and its experts."""

    base: Path
    full: tuple[Path, ...]
    lora: Path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A random two-layer Llama with a byte-level BPE, three full fine-tunes and a LoRA adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models")
    base = folder / "base"
    tokens = _save_tokenizer(base)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokens,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= 6  # the default spread is too small for logits that differ
    model.generation_config.eos_token_id = [2, *range(200, 215)]  # some answers end early
    model.save_pretrained(base)
    full = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        expert = AutoModelForCausalLM.from_pretrained(base)
        for parameter in expert.parameters():
            spread = 0.3 * float(parameter.detach().std()) if parameter.dim() == 2 else 0.05
            parameter.data += spread * torch.randn_like(parameter)
        expert.save_pretrained(folder / f"full{seed}")
        full.append(folder / f"full{seed}")
    torch.manual_seed(4)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear"),
    )
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
    adapted.save_pretrained(folder / "lora")
    return Models(base, tuple(full), folder / "lora")


@pytest.fixture(scope="session")
def basis(models: Models) -> Basis:
    """Of two full fine-tunes and the adapter, at full rank."""
    from cqd_hub.genome import build_basis, open_models

    return build_basis(*open_models(models.base, [*models.full[:2], models.lora]))


def _save_tokenizer(folder: Path) -> int:
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(kinds.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _TEXT,
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=["<pad>", "<bos>", "<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    fast.chat_template = (
        "{% for m in messages %}<bos>{{ m['role'] }}: {{ m['content'] }}"
        "{% if not loop.last or not continue_final_message %}<eos>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<bos>assistant: {% endif %}"
    )
    fast.save_pretrained(folder)
    return len(fast)
