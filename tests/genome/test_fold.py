"""Adapters that only PEFT can merge: the folded checkpoint is the adapted model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from cqd_hub.errors import RunError
from cqd_hub.genome.models import fold
from cqd_hub.genome.models.experts import FullExpert
from tests.genome.tiny_adapters import (
    VOCABULARY,
    base_of,
    load,
    lora,
    opened,
    refused,
    train,
)
from tests.genome.tiny_models import edit_tensors

pytestmark = pytest.mark.filterwarnings("ignore")

TARGETS = {"target_modules": ["q_proj", "up_proj"]}
FOLDED: dict[str, tuple[str, Callable[[], Any]]] = {
    "adalora": ("llama", lambda: peft.AdaLoraConfig(init_r=3, target_r=2, total_step=9, **TARGETS)),
    "adamss": ("llama", lambda: peft.AdamssConfig(r=4, **TARGETS)),
    "boft": ("llama", lambda: peft.BOFTConfig(boft_block_size=4, **TARGETS)),
    "c3a": ("llama", lambda: peft.C3AConfig(block_size=8, **TARGETS)),
    "delora": ("llama", lambda: peft.DeloraConfig(r=4, **TARGETS)),
    "fourierft": ("llama", lambda: peft.FourierFTConfig(n_frequency=20, **TARGETS)),
    "gralora": ("llama", lambda: peft.GraloraConfig(r=4, **TARGETS)),
    "hira": ("llama", lambda: peft.HiraConfig(r=2, **TARGETS)),
    "hra": ("llama", lambda: peft.HRAConfig(r=2, **TARGETS)),
    "ia3": ("llama", lambda: peft.IA3Config(feedforward_modules=["up_proj"], **TARGETS)),
    "loha": ("llama", lambda: peft.LoHaConfig(r=2, alpha=3, **TARGETS)),
    "lokr": ("llama", lambda: peft.LoKrConfig(r=2, alpha=3, **TARGETS)),
    "miss": ("llama", lambda: peft.MissConfig(r=4, **TARGETS)),
    "norms": ("llama", lambda: peft.LNTuningConfig(target_modules=["input_layernorm"])),
    "oft": ("llama", lambda: peft.OFTConfig(oft_block_size=4, **TARGETS)),
    "osf": ("llama", lambda: peft.OSFConfig(**TARGETS)),
    "randlora": ("llama", lambda: peft.RandLoraConfig(r=4, target_modules=["q_proj"])),
    "road": ("llama", lambda: peft.RoadConfig(group_size=8, **TARGETS)),
    "shira": ("llama", lambda: peft.ShiraConfig(r=2, **TARGETS)),
    "vblora": (
        "llama",
        lambda: peft.VBLoRAConfig(r=4, num_vectors=8, vector_length=4, topk=2, **TARGETS),
    ),
    "vera": ("llama", lambda: peft.VeraConfig(r=4, target_modules=["q_proj"])),
    "tied tokens": ("tied", lambda: peft.TrainableTokensConfig(token_indices=[3, 9])),
    "with modules": ("tied", lambda: peft.LoHaConfig(r=2, modules_to_save=["norm"], **TARGETS)),
    "conv1d": (
        "gpt2",
        lambda: peft.IA3Config(target_modules=["c_attn"], feedforward_modules=[]),
    ),
    "pissa": ("llama", lambda: lora(init_lora_weights="pissa")),
    "olora": ("tied", lambda: lora(init_lora_weights="olora")),
    "kasa": ("llama", lambda: lora(kasa_config=peft.KasaConfig())),
    "experts": (
        "mixtral",
        lambda: lora(target_parameters=["experts.gate_up_proj", "experts.down_proj"]),
    ),
    "stacked module": ("mixtral", lambda: lora(modules_to_save=["experts"])),
}


@pytest.mark.parametrize("case", FOLDED)
def test_folded(case: str, tmp_path: Path) -> None:
    """A checkpoint with the logits of the adapted model, made once."""
    name, config = FOLDED[case]
    adapted = train(base_of(name), tmp_path / "adapter", config())
    notes: list[str] = []
    expert = opened(base_of(name), tmp_path / "adapter", notes)
    assert isinstance(expert, FullExpert)
    assert expert.path == tmp_path / "adapter"
    assert len(notes) == 1
    assert "PEFT merges it into a full fp32 checkpoint" in notes[0]
    merged_model, ids = load(expert.stored.checkpoint.path), torch.arange(3, 15).unsqueeze(0)
    with torch.no_grad():
        logits = adapted(ids).logits
        torch.testing.assert_close(merged_model(ids).logits, logits, atol=1e-5, rtol=1e-5)
        assert (load(base_of(name))(ids).logits - logits).abs().max() > 1e-3
    moved = sum(bool(expert.task_vector(slot).any()) for slot in expert.base.slots)
    assert 0 < moved < len(expert.base.slots)
    again: list[str] = []
    assert opened(base_of(name), tmp_path / "adapter", again).content_hash == expert.content_hash
    assert again == []


def test_fold_with_added_tokens(tmp_path: Path) -> None:
    base, rows = base_of("llama"), VOCABULARY + 3
    config = peft.LoHaConfig(r=2, base_model_name_or_path=str(base), **TARGETS)
    model = train(base, tmp_path / "adapter", config, rows=rows)
    expert = opened(base, tmp_path / "adapter")
    slot = expert.base.slot_of("lm_head.weight")
    assert expert.rows(slot) == rows
    wanted = model.get_base_model().lm_head.weight
    assert torch.equal(expert.stored_rows(slot), wanted)


def test_fold_begins_anew_after_a_kill_or_damage(tmp_path: Path) -> None:
    base, adapter = base_of("llama"), tmp_path / "adapter"
    train(base, adapter, peft.LoHaConfig(r=2, **TARGETS))
    folder = opened(base, adapter).stored.checkpoint.path
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-9])
    debris = folder.parent / f".{folder.name}.killed"
    debris.mkdir()
    notes: list[str] = []
    assert opened(base, adapter, notes).stored.checkpoint.path == folder
    assert len(notes) == 1
    assert (folder / "model.safetensors").read_bytes() == weights
    assert not debris.exists()
    edit_tensors(
        adapter / "adapter_model.safetensors", lambda ts: {n: 2 * t for n, t in ts.items()}
    )
    assert opened(base, adapter).stored.checkpoint.path != folder


def test_fold_that_unties_or_merges_wrongly(tmp_path: Path) -> None:
    base = base_of("tied")
    train(base, tmp_path / "one", peft.LoHaConfig(r=2, modules_to_save=["lm_head"], **TARGETS))
    assert "unties the embeddings" in refused(base, tmp_path / "one").what
    train(base, tmp_path / "two", peft.HiraConfig(r=2, target_modules=["embed_tokens"]))
    assert "merges it into another model" in refused(base, tmp_path / "two").what


def test_fold_of_another_base(tmp_path: Path) -> None:
    train(base_of("llama"), tmp_path / "adapter", peft.LoHaConfig(r=2, **TARGETS))
    error = refused(base_of("gpt2"), tmp_path / "adapter")
    assert "PEFT cannot merge it" in error.what
    assert f"trained on {base_of('llama')}" in error.what
    edit_tensors(
        tmp_path / "adapter/adapter_model.safetensors",
        lambda tensors: tensors | {"base_model.model.model.norm.hada_w3_a": torch.ones(2)},
    )
    assert "hada_w3_a is of no known kind" in refused(base_of("llama"), tmp_path / "adapter").what


def test_fold_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter, notes = base_of("llama"), tmp_path / "adapter", list[str]()
    train(base, adapter, peft.LoHaConfig(r=2, **TARGETS))
    monkeypatch.setattr(fold, "_available", lambda: 1000)
    error = refused(base, adapter, notes)
    assert re.search(r"about 0\.\d\d MB of memory \(0\.0 M weights in fp32", error.what)
    assert "0.00 MB are available" in error.what
    assert len(notes) == 1
    monkeypatch.setattr(fold.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(RunError, match="are free"):
        opened(base, adapter)
