"""Every verified family, from base and mixed experts to a checkpoint that transformers loads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cqd_hub.evaluation.engine.sequential import SequentialEngine
from cqd_hub.genome import Materialiser, build_basis, open_models
from cqd_hub.genome.export import export_checkpoint
from tests.genome.dense import check_lineage
from tests.genome.families import FAMILIES, adapt, fine_tune, make_model, stored

PROMPT = torch.arange(2, 30)[None]
DOCUMENT = Path(__file__).parents[2] / "docs" / "families.md"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(PROMPT).logits.double()


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, tmp_path: Path) -> None:
    base = make_model(name, tmp_path / "base")
    experts = [
        fine_tune(base, tmp_path / "sharded", seed=1, dtype=torch.float32, shard="20KB"),
        fine_tune(base, tmp_path / "half", seed=2, dtype=torch.bfloat16),
        adapt(base, tmp_path / "lora", seed=3),
    ]
    assert (experts[0] / "model.safetensors.index.json").exists()
    basis = build_basis(*open_models(base, experts), rank=6, cache=tmp_path / "cache")
    child = check_lineage(basis)

    export_checkpoint(child, Materialiser(basis), tmp_path / "child", shard_size="30KB")
    assert stored(tmp_path / "child").keys() == stored(base).keys()
    loaded, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "child", output_loading_info=True
    )
    assert not any(report.values()), report
    engine = SequentialEngine(basis, device="cpu", dtype=torch.float32)
    engine._materialiser.write(child, engine._parameters)
    resident, exported = logits(engine._model), logits(loaded)
    assert (resident - exported).norm() <= 1e-6 * exported.norm()
    unchanged = logits(AutoModelForCausalLM.from_pretrained(base))
    assert (unchanged - exported).norm() > 1e-2 * exported.norm()


def test_an_expert_saved_under_other_names_is_the_same_expert(tmp_path: Path) -> None:
    """mergekit saves mixtures as they are in memory; the Hub's GPT-2 has no prefix."""


def test_the_documents_table_is_what_was_verified() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), (
        "run: UPDATE_DOCS=1 pytest tests/genome/test_families.py"
    )


def document() -> str:
    return ""


if os.environ.get("UPDATE_DOCS"):
    DOCUMENT.write_text(document(), encoding="utf-8")
