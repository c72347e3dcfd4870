"""A key-value cache whose rows are written each at its own position: pure torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from cqd_hub.evaluation.engine.attention import ROWS

_STEP = 64  # columns are added this many at a time
_MASKED = ("sdpa", "eager", ROWS)  # attention that takes a mask of four dimensions


def longest_row(config: Any) -> int:
    """How many tokens a row of `RowCache` may hold under a model's *config*; 0: none at all.

    Only keys and values per layer are kept. A sliding window is full attention up to its length.
    """
    if config._attn_implementation not in _MASKED or getattr(config, "num_kv_shared_layers", None):
        return 0
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type")} | {
        one.get("rope_type") for one in rope.values() if isinstance(one, dict)
    }
    if kinds & {"dynamic", "longrope"}:  # a row's angles depend on the longest row beside it
        return 0
    longest = 1 << 30
    for layer in DynamicCache(config=config).layers:
        if type(layer) is DynamicSlidingWindowLayer:
            longest = min(longest, int(layer.sliding_window))
        elif type(layer) is not DynamicLayer:
            return 0
    return longest


class RowCache:
    """What a transformers model is given as ``past_key_values``.

    `aim` or `aim_packed` says where the next forward pass's tokens go. Column ``-1`` stands for a
    token that is only there to fill the rectangle; nothing reads it.
    """

    is_compileable = False

    def __init__(self) -> None:
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._rows = self._columns = 0
        self._read: slice | torch.Tensor | None = None
        self._length = 0
        self._write: tuple[torch.Tensor, torch.Tensor] | None = None

    def aim(self, rows: Sequence[int], columns: torch.Tensor, length: int) -> int:
        """Point the next pass at rows that carry on.

        Args:
            rows: Which row each row of the batch is.
            columns: ``[batch, width]`` on the device: where each token is written, or -1.
            length: How many columns are to be read.

        Returns:
            How many are read: a few more where that spares copying them out.
        """
        first = rows[0]
        index = torch.tensor(rows, device=columns.device)
        consecutive = list(rows) == list(range(first, first + len(rows)))
        self._read = slice(first, first + len(rows)) if consecutive else index
        self._write = self._places(index[:, None].expand_as(columns), columns)
        # Batched products on a CPU would copy a part of the columns; see `attention`.
        whole = consecutive and columns.device.type == "cpu" and columns.shape[1] == 1
        self._length = self._columns if whole and 2 * length > self._columns else length
        return self._length

    def aim_packed(self, rows: torch.Tensor, columns: torch.Tensor) -> None:
        """Point the next pass at rows that begin, several of them behind each other in one.

        Args:
            rows: ``[batch, width]`` on the device: the row that each token belongs to.
            columns: As in `aim`.
        """
        self._read = None  # tokens see those of the pass alone
        self._write = self._places(rows, columns)

    def reserve(self, rows: int, columns: int) -> None:
        """Make room, keeping what is there."""
        columns = -(-columns // _STEP) * _STEP
        if rows <= self._rows and columns <= self._columns:
            return
        old = self._rows, self._columns
        self._rows, self._columns = max(rows, old[0]), max(columns, old[1])
        for number, (keys, values) in self._layers.items():
            grown = [self._empty(tensor) for tensor in (keys, values)]
            for new, tensor in zip(grown, (keys, values), strict=True):
                new[: old[0], :, : old[1]] = tensor[: old[0]]
            self._layers[number] = grown[0], grown[1]

    def release(self) -> None:
        """Give the memory back."""
        self._layers, self._rows, self._columns = {}, 0, 0

    def move(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copy the first *length* columns of rows over as many others, no source among them."""
        for pair in self._layers.values():
            for tensor in pair:
                tensor[targets, :, :length] = tensor[sources, :, :length]

    def clear(self, row: int) -> None:
        """Zero a row: masked NaN would still spoil whoever has the row next."""
        for pair in self._layers.values():
            for tensor in pair:
                tensor[row] = 0

    # What models call.

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a pass's keys and values, each ``[batch, heads, width, size]``; return all."""
        if layer not in self._layers:
            self._layers[layer] = self._empty(keys), self._empty(values)
        assert self._write is not None
        rows, columns = self._write
        for kept, new in zip(self._layers[layer], (keys, values), strict=True):
            kept[rows, :, columns] = new.transpose(1, 2)
        if self._read is None:
            return keys, values
        kept_keys, kept_values = self._layers[layer]
        return (
            kept_keys[self._read, :, : self._length],
            kept_values[self._read, :, : self._length],
        )

    def get_seq_length(self, *_: Any) -> int:
        """Positions and masks are always given, so this decides nothing."""
        return 0

    def _places(
        self, rows: torch.Tensor, columns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where tokens are written: those of column -1 to a row of their own, behind the others."""
        return torch.where(columns < 0, self._rows, rows), columns.clamp(min=0)

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        # Zeros, not whatever memory holds: NaN times a weight of 0 is NaN.
        # A head's columns lie together: attention multiplies them as one matrix.
        return like.new_zeros(self._rows + 1, like.shape[1], self._columns, like.shape[3])
