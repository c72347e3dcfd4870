"""Every bad input gets one line with its place and the remedy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cqd_hub.errors import UserError
from tests.genome.tiny_models import (
    SHAPE,
    basis_of,
    drop,
    edit_json,
    edit_tensors,
    load,
    make_base,
    make_lora,
)

FROM_BASE = "use experts fine-tuned from this base"


def refused(base: Path, expert: Path, cache: Path, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        basis_of(base, [expert], cache, **options)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.rglob("*.safetensors"))
    return caught.value


@pytest.fixture
def base(family: Any) -> Path:
    return family().base


@pytest.fixture
def expert(family: Any, tmp_path: Path) -> Path:
    return shutil.copytree(family().full[0], tmp_path / "expert")


@pytest.fixture
def adapter(family: Any, tmp_path: Path) -> Path:
    return shutil.copytree(family().lora[0], tmp_path / "adapter")


def other_shape(folder: Path, **changes: int) -> Path:
    config = LlamaConfig(**(SHAPE | changes), tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = sorted(tensors)[3]
    tensors[name].view(-1)[2] = float("nan")
    return tensors


def check(error: UserError, where: Path, what: str, remedy: str) -> None:
    assert error.exit_code == 2
    assert error.where.startswith(str(where))
    assert what in error.what
    assert remedy in error.remedy


def test_another_width(base: Path, tmp_path: Path) -> None:
    other = other_shape(tmp_path / "other", hidden_size=64)
    check(refused(base, other, tmp_path / "c"), other, "shape [64, 64]", FROM_BASE)


def test_another_depth(base: Path, tmp_path: Path) -> None:
    other = other_shape(tmp_path / "other", num_hidden_layers=3)
    check(refused(base, other, tmp_path / "c"), other, "layers.2", FROM_BASE)


def test_another_architecture(base: Path, expert: Path, tmp_path: Path) -> None:
    edit_json(expert / "config.json", architectures=["MistralForCausalLM"])
    check(refused(base, expert, tmp_path / "c"), expert, "MistralForCausalLM", FROM_BASE)


def test_untied_expert_of_a_tied_base(base: Path, tmp_path: Path) -> None:
    other = make_base(tmp_path / "untied", tied=False)
    error = refused(base, other, tmp_path / "c")
    check(error, other, "the base has no tensor lm_head.weight", FROM_BASE)


def test_missing_tensor(base: Path, expert: Path, tmp_path: Path) -> None:
    edit_tensors(expert / "model.safetensors", drop("model.norm.weight"))
    check(refused(base, expert, tmp_path / "c"), expert, "no tensor model.norm.weight", FROM_BASE)


def test_identical_to_the_base(base: Path, tmp_path: Path) -> None:
    same = shutil.copytree(base, tmp_path / "same")
    check(refused(base, same, tmp_path / "c"), same, "identical to the base", "leave it out")


def test_untrained_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    edit_tensors(
        adapter / "adapter_model.safetensors",
        lambda tensors: {n: t * ("lora_A" in n) for n, t in tensors.items()},
    )
    check(refused(base, adapter, tmp_path / "c"), adapter, "identical to the base", "leave it out")


def test_nan_in_a_full_expert(base: Path, expert: Path, tmp_path: Path) -> None:
    edit_tensors(expert / "model.safetensors", nan)
    check(refused(base, expert, tmp_path / "c"), expert, "holds NaN", "train it again")


def test_nan_in_an_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    edit_tensors(adapter / "adapter_model.safetensors", nan)
    check(refused(base, adapter, tmp_path / "c"), adapter, "holds NaN", "train it again")


def test_nan_in_the_base(base: Path, expert: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(base, tmp_path / "broken")
    edit_tensors(broken / "model.safetensors", nan)
    check(refused(broken, expert, tmp_path / "c"), broken, "holds NaN", "train it again")


def test_pickles_are_never_opened(base: Path, expert: Path, tmp_path: Path) -> None:
    (expert / "model.safetensors").unlink()
    torch.save(load(base).state_dict(), expert / "pytorch_model.bin")
    error = refused(base, expert, tmp_path / "c")
    check(error, expert, "only pickled weights (pytorch_model.bin)", "convert it to safetensors")


def test_truncated_file(base: Path, expert: Path, tmp_path: Path) -> None:
    file = expert / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    check(refused(base, expert, tmp_path / "c"), file, "damaged or cut short", "download")


def test_missing_shard(base: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    load(base).save_pretrained(sharded, max_shard_size="20KB")
    gone = min(sharded.glob("model-*.safetensors"))
    gone.unlink()
    error = refused(base, sharded, tmp_path / "c")
    check(error, sharded, f"shard {gone.name} is missing", "download it again")


def test_no_such_folder(base: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    check(refused(base, gone, tmp_path / "c"), gone, "config.json is missing", "model folder")


def test_no_weights(base: Path, expert: Path, tmp_path: Path) -> None:
    (expert / "model.safetensors").unlink()
    check(refused(base, expert, tmp_path / "c"), expert, "no model.safetensors", "check the path")


def test_broken_config(base: Path, expert: Path, tmp_path: Path) -> None:
    (expert / "config.json").write_text("{")
    check(refused(base, expert, tmp_path / "c"), expert / "config.json", "not JSON", "")


def test_quantised(base: Path, expert: Path, tmp_path: Path) -> None:
    edit_json(expert / "config.json", quantization_config={"quant_method": "gptq"})
    check(refused(base, expert, tmp_path / "c"), expert, "quantised", "unquantised original")


def test_adapter_of_another_base(base: Path, tmp_path: Path) -> None:
    wide = other_shape(tmp_path / "wide", hidden_size=64)
    adapter = make_lora(wide, tmp_path / "adapter", seed=1)
    check(refused(base, adapter, tmp_path / "c"), adapter, "the base's is", "adapter of this base")
    deep = other_shape(tmp_path / "deep", num_hidden_layers=3)
    adapter = make_lora(deep, tmp_path / "adapter2", seed=1)
    check(refused(base, adapter, tmp_path / "c"), adapter, "layers.2", "adapter of this base")


@pytest.mark.parametrize("rank", [0, 33])
def test_rank_beyond_the_matrices(base: Path, expert: Path, tmp_path: Path, rank: int) -> None:
    error = refused(base, expert, tmp_path / "c", rank=rank)
    check(error, Path("genome.rank"), f"rank {rank} is not within 1 to 32", "rank: full")
