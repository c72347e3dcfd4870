"""Attention of one new token per row on a CPU: two products of matrices and a softmax.

PyTorch's kernel works through rows of one query one by one; for many short rows a batched product
takes a half to a third of its time (`benchmarks/engine.py` shows it in a whole decoding step).
Everything else goes to transformers' ``sdpa``.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ROWS = "cqd-hub-rows"  # as transformers names it


def use_row_attention(model: Any) -> None:
    """Let a model of transformers' ``sdpa`` on a CPU attend by `_attend`."""
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(ROWS, _attend)
        AttentionMaskInterface.register(ROWS, sdpa_mask)
        model.set_attn_implementation(ROWS)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """See `sdpa_attention_forward`.

    Args:
        query: ``[rows, heads, width, size]``.
        key, value: ``[rows, key heads, length, size]``.
        attention_mask: ``[rows, 1, width, length]``, true where a token is seen.
    """
    rows, heads, width, size = query.shape
    special = any(options.get(name) is not None for name in ("softcap", "position_bias", "cache"))
    if width != 1 or attention_mask is None or attention_mask.dtype != torch.bool or special:
        attended: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return attended
    grouped = query.view(rows, key.shape[1], -1, size)  # heads that share a key
    scores = (grouped @ key.transpose(2, 3)).float() * (size**-0.5 if scaling is None else scaling)
    scores.masked_fill_(~attention_mask, float("-inf"))
    mixed = scores.softmax(-1).to(value.dtype) @ value
    return mixed.view(rows, 1, heads, value.shape[-1]), None
