"""Every adapter that does not fit gets one line, most of them from headers alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cqd_hub.errors import UserError
from tests.genome.tiny_adapters import (
    VOCABULARY,
    base_of,
    lora,
    opened,
    refused,
    train,
)
from tests.genome.tiny_models import edit_json, edit_tensors

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A plain one of the untied Llama, with a whole norm."""
    train(base_of("llama"), tmp_path / "adapter", lora(modules_to_save=["model.norm"]))
    return tmp_path / "adapter"


QUERY = "base_model.model.model.layers.0.self_attn.q_proj"
NORM = "base_model.model.model.norm.weight"
Tensors = dict[str, torch.Tensor]
TENSORS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "unpaired": (
        lambda ts: {n: t for n, t in ts.items() if n != f"{QUERY}.lora_B.weight"},
        "no lora_B for model.layers.0.self_attn.q_proj.weight",
    ),
    "magnitude alone": (
        lambda ts: ts | {f"{QUERY[:-6]}k_proj.lora_magnitude_vector": torch.ones(8)},
        "no lora_A for model.layers.0.self_attn.k_proj.weight",
    ),
    "unknown factor": (lambda ts: ts | {f"{QUERY}.lora_C.weight": torch.ones(2)}, "lora_C"),
    "unprefixed": (lambda ts: ts | {"model.norm.weight": torch.ones(16)}, "of no known kind"),
    "another rank": (
        lambda ts: ts | {f"{QUERY}.lora_A.weight": torch.ones(4, 16)},
        "has rank 4, the config says 3",
    ),
    "another width": (
        lambda ts: ts | {f"{QUERY}.lora_A.weight": torch.ones(3, 17)},
        "[16, 17], the base's is [16, 16]; it was trained on",
    ),
    "not gathered": (lambda ts: ts | {f"{QUERY}.lora_A.weight": torch.ones(0)}, "has shape [0]"),
    "another norm": (lambda ts: ts | {NORM: torch.ones(17)}, "has shape [17], the base's is [16]"),
    "longer matrix": (
        lambda ts: ts | {f"{QUERY[:-6]}k_proj.weight": torch.ones(9, 16)},
        "has shape [9, 16], the base's is [8, 16]",
    ),
    "wider embedding": (
        lambda ts: ts | {"base_model.model.lm_head.weight": torch.ones(VOCABULARY, 17)},
        "has shape [40, 17], the base's is [40, 16]",
    ),
    "deeper": (
        lambda ts: ts | {NORM.replace("norm", "layers.7.input_layernorm"): torch.ones(16)},
        "adapts model.layers.7.input_layernorm.weight, which the base does not have",
    ),
    "head of a classifier": (
        lambda ts: ts | {"base_model.model.score.weight": torch.ones(2, 16)},
        "adapts score.weight, which the base does not have",
    ),
    "bias for none": (
        lambda ts: ts | {f"{QUERY}.lora_B.bias": torch.ones(16)},
        "lora_bias adds model.layers.0.self_attn.q_proj.bias",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit(case: str, adapter: Path) -> None:
    change, what = TENSORS[case]
    edit_tensors(adapter / "adapter_model.safetensors", change)
    error = refused(base_of("llama"), adapter)
    assert what in error.what
    if "the base" in what:
        assert str(base_of("llama")) in error.what or "lora_bias" in error.what


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "no kind": ({"peft_type": None}, "names no peft_type"),
    "unknown kind": ({"peft_type": "SORA"}, "peft_type SORA is unknown to PEFT"),
    "prompts": ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING adapter: trained inputs"),
    "routed": ({"peft_type": "XLORA"}, "XLORA adapter: what it adds depends on the input"),
    "no rank": ({"r": None}, "r is None, not a number"),
    "rank in words": ({"r": "3"}, "r is '3'"),
    "rank zero": ({"r": 0}, "0 is not a rank"),
    "no alpha": ({"lora_alpha": True}, "lora_alpha is True"),
    "broken pattern": ({"rank_pattern": {"q_proj(": 3}}, "rank_pattern holds 'q_proj('"),
    "list of patterns": ({"alpha_pattern": ["q_proj"]}, "alpha_pattern is not a mapping"),
    "activated": ({"alora_invocation_tokens": [1]}, "act only after certain tokens"),
    "replicated": ({"layer_replication": [[0, 2]]}, "makes layers that the base does not have"),
    "blocks": ({"use_bdlora": {"nblocks": 2}}, "use_bdlora is set"),
    "for quantised weights": ({"use_qalora": True}, "fit quantised weights only"),
    "another draw": ({"init_lora_weights": "pissa_niter_4"}, "loading draws another start"),
    "start from data": ({"init_lora_weights": "corda"}, "PEFT cannot merge it: `eigens`"),
    "unheard-of switch": ({"use_quantum": True}, "use_quantum is set, which is not known here"),
    "another file": ({"peft_type": "LOHA"}, "its config asks for base_model.model.model"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_say_no(case: str, adapter: Path) -> None:
    changes, what = CONFIGS[case]
    edit_json(adapter / "adapter_config.json", **changes)
    assert what in refused(base_of("llama"), adapter).what


def test_config_without_rank(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    del config["r"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert "no r" in refused(base_of("llama"), adapter).what
    (adapter / "adapter_config.json").write_text("[]")
    assert "is no JSON object" in refused(base_of("llama"), adapter).what
    for key, value in (("lora_alpha", float("nan")), ("r", float("inf"))):
        broken = config | {"r": 4, "lora_alpha": 4, key: value}
        (adapter / "adapter_config.json").write_text(json.dumps(broken))
        assert f"{key} is {value}" in refused(base_of("llama"), adapter).what
    (adapter / "adapter_config.json").unlink()
    assert "adapter_config.json is missing" in refused(base_of("llama"), adapter).what


TIED: dict[str, dict[str, Any]] = {
    "embedding": {"target_modules": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["lm_head", "embed_tokens"]},
    "dora": {"target_modules": ["embed_tokens"], "use_dora": True},
    "whole embedding": {"modules_to_save": ["embed_tokens"]},
    "whole both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens of the head": {"trainable_token_indices": {"lm_head": [3]}},
    "other tokens": {"trainable_token_indices": {"lm_head": [3], "embed_tokens": [4]}},
}


@pytest.mark.parametrize("case", TIED)
def test_untied_in_effect(case: str, tmp_path: Path) -> None:
    """What PEFT computes with is two different ends, which one weight cannot be."""
    train(base_of("tied"), tmp_path / "adapter", lora(**TIED[case]))
    error = refused(base_of("tied"), tmp_path / "adapter")
    assert "the base ties both to one weight" in error.what
    assert "ensure_weight_tying=True" in error.remedy


@pytest.mark.parametrize("name", [f"{QUERY}.lora_A.weight", f"{QUERY}.lora_B.weight", NORM])
def test_numbers_that_are_none(name: str, adapter: Path) -> None:
    def spoil(tensors: Tensors) -> Tensors:
        tensors[name].view(-1)[3] = float("inf")
        return tensors

    edit_tensors(adapter / "adapter_model.safetensors", spoil)
    expert = opened(base_of("llama"), adapter)
    with pytest.raises(UserError, match=f"{re.escape(name)} holds NaN or infinity"):
        [expert.task_vector(slot) for slot in expert.base.slots]
    edit_json(adapter / "adapter_config.json", init_lora_weights="pissa")
    assert "holds NaN or infinity" in refused(base_of("llama"), adapter).what


def test_files_that_cannot_be_read(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), adapter / "adapter_model.bin")
    file.write_bytes(file.read_bytes()[:-5])
    assert "damaged or cut short" in refused(base_of("llama"), adapter).what
    file.unlink()
    assert "only pickled weights (adapter_model.bin)" in refused(base_of("llama"), adapter).what
    (adapter / "adapter_model.bin").unlink()
    assert "holds no adapter_model.safetensors" in refused(base_of("llama"), adapter).what


def test_tokens_that_the_config_does_not_name(tmp_path: Path) -> None:
    base, adapter = base_of("llama"), tmp_path / "adapter"
    train(base, adapter, lora(trainable_token_indices=[3, 5]))
    config = adapter / "adapter_config.json"
    edit_json(config, trainable_token_indices=[3, VOCABULARY])
    assert f"trains token {VOCABULARY}, the base has {VOCABULARY}" in refused(base, adapter).what
    edit_json(config, trainable_token_indices=[3])
    assert "the base's is [1, 16]" in refused(base, adapter).what
    edit_json(config, trainable_token_indices={"lm_head": [3, 5]})
    assert "does not say which tokens" in refused(base, adapter).what


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama", None),
        ("someone/llama", None),
        ("", None),
        (None, None),
        ("someone/other", "was trained on someone/other; the base is"),
        ("someone/Llama-bnb-4bit", "was trained on someone/Llama-bnb-4bit, a quantised copy;"),
    ],
)
def test_name_of_another_base(name: str | None, said: str | None, adapter: Path) -> None:
    """Shapes that fit are taken, a name that differs is said."""
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=name)
    notes: list[str] = []
    opened(base_of("llama"), adapter, notes)
    assert [said in note for note in notes if said] == ([True] if said else [])
    assert len(notes) == bool(said)


def test_unknown_number_in_the_config(adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", new_default=16, new_none=None, use_new=False)
    notes: list[str] = []
    opened(base_of("llama"), adapter, notes)
    assert len(notes) == 1
    assert "new_default is not known here" in notes[0]
