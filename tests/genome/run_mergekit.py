"""A recipe run by the real mergekit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM


def merged(recipe: Path, tmp_path: Path, *, to: str = "merged") -> dict[str, torch.Tensor]:
    """Run *recipe* into ``tmp_path/to`` and return the state of the model loaded from there."""
    config = pytest.importorskip("mergekit.config")
    yaml = pytest.importorskip("yaml")
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import MergeOptions, run_merge

    LoaderCache().loaders.clear()
    options = MergeOptions(
        lora_merge_cache=str(tmp_path / f"{to}-adapters"),
        lora_merge_dtype="float32",
        write_model_card=False,
        quiet=True,
    )
    document = config.MergeConfiguration.model_validate(yaml.safe_load(recipe.read_text()))
    run_merge(document, str(tmp_path / to), options)
    LoaderCache().loaders.clear()
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / to, output_loading_info=True)
    assert not info["missing_keys"], info
    return model.state_dict()
