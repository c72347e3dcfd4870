"""Attention of one new token per row: what transformers' sdpa gives, by other means."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cqd_hub.evaluation.engine import attention
from cqd_hub.evaluation.engine._cache import RowCache
from cqd_hub.evaluation.engine.loading import load_model
from tests.genome.families import make_model


@pytest.mark.parametrize("shared", [1, 3], ids=["own", "grouped"])
@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=["fp32", "bf16"]
)
def test_it_attends_as_sdpa_does(shared: int, width: int, dtype: torch.dtype, error: float) -> None:
    torch.manual_seed(0)
    query = torch.randn(5, 2 * shared, width, 8, dtype=dtype)
    key, value = torch.randn(2, 5, 2, 30, 8, dtype=dtype)
    seen = torch.randint(1, 30, (5, 1, width, 1))
    mask = torch.arange(30) < seen
    module = cast(Any, SimpleNamespace(num_key_value_groups=shared, is_causal=True))
    ours, _ = attention._attend(module, query, key[:, :, :20], value[:, :, :20], mask[..., :20])
    theirs, _ = sdpa_attention_forward(
        module, query, key[:, :, :20], value[:, :, :20], mask[..., :20]
    )
    assert ours.shape == theirs.shape == (5, width, 2 * shared, 8)
    assert ours.dtype == dtype
    assert (ours.float() - theirs.float()).abs().max() < error


def test_models_of_sdpa_attend_so_and_others_as_they_did(tmp_path: Any) -> None:
    for name, wanted in (("llama", attention.ROWS), ("gpt_oss", "eager")):
        folder = make_model(name, tmp_path / name)
        model = load_model(folder, device="cpu", dtype=torch.float32)
        assert model.config._attn_implementation == wanted


def test_what_fills_the_rectangle_is_never_read() -> None:
    cache = RowCache()
    cache.reserve(2, 4)
    columns = torch.tensor([[0, -1], [0, 1]])
    cache.aim([0, 1], columns, 2)
    keys = torch.ones(2, 1, 2, 3)
    keys[0, 0, 1] = torch.nan
    for kept in cache.update(keys, keys, 0):
        assert kept.isfinite().all()
    cache.aim_packed(torch.tensor([[0, 0]]), torch.tensor([[0, -1]]))
    cache.update(torch.full((1, 1, 2, 3), torch.nan), torch.ones(1, 1, 2, 3), 0)
    cache.clear(0)
    assert cache.aim([0, 1], torch.tensor([[1], [2]]), 3) >= 3
    for kept in cache.update(torch.ones(2, 1, 1, 3), torch.ones(2, 1, 1, 3), 0):
        assert kept.isfinite().all()
