"""What an engine keeps in memory, counted from shapes alone: nothing is read or allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from cqd_hub.genome.held import Weights
from cqd_hub.genome.layout import Layout, Slot
from cqd_hub.genome.materialise import rows_at_a_time

_LOGITS = 1 << 27  # elements of one pass, at most (see `_slots`)
_CHUNK = {"cpu": 4096, "cuda": 32768}  # tokens of one prefill
_CONTEXT = 600 << 20  # a CUDA context with its libraries


@dataclass(frozen=True)
class Shape:
    """A base with its experts, as their headers tell.

    Args:
        layout: Of the basis, or one that is expected to be its.
        stored: Bytes of each slot as the base stores it.
        dense: ``[slots, experts]`` whether the expert's task vector is dense there.
        config: Of the text model: layers, heads, sizes, by transformers' names; 0 if not known.
    """

    layout: Layout
    stored: tuple[int, ...]
    dense: tuple[tuple[bool, ...], ...]
    config: Any

    @property
    def parameters(self) -> int:
        """How many weights an individual has."""
        return sum(map(math.prod, (slot.shape for slot in self.layout.slots)))

    @property
    def in_layers(self) -> int:
        """Weights that every token is multiplied with, but for embedding and head."""
        ends = {self.config.vocab_size}
        return sum(
            math.prod(slot.shape)
            for slot in self.layout.slots
            if slot.is_matrix and not ends & set(slot.shape[:1])
        )

    def factor_numbers(self) -> int:
        """Numbers in all experts' factors together."""
        return sum(
            sum(ranks) * sum(slot.shape)
            for slot, ranks in zip(self.layout.slots, self.layout.ranks, strict=True)
            if slot.is_matrix
        )

    def cache_bytes(self, size: int) -> int:
        """Bytes of keys and values of one token."""
        config = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        return int(2 * config.num_hidden_layers * heads * width * size)

    def at_rank(self, rank: int) -> Shape:
        """The same with dense task vectors cut at *rank* and nothing kept beyond it."""
        layout = self.layout
        ranks = tuple(
            tuple(min(rank, r) if dense else r for r, dense in zip(row, denses, strict=True))
            for row, denses in zip(layout.ranks, self.dense, strict=True)
        )
        tails = tuple(
            tuple(tail and not slot.is_matrix for tail in row)
            for slot, row in zip(layout.slots, layout.tails, strict=True)
        )
        return replace(self, layout=replace(layout, ranks=ranks, tails=tails))


@dataclass(frozen=True)
class Load:
    """What an engine is to do at once.

    Args:
        rows: Requests of one individual, at most.
        length: Tokens of the longest prompt and its answer.
        batch_tokens: The recipe's.
        cores: Whether individuals hold cores (`of: child`).
        width: Individuals in one batch.
    """

    rows: int
    length: int
    batch_tokens: int
    cores: bool = False
    width: int = 1


def on_device(
    shape: Shape,
    load: Load,
    *,
    engine: str,
    device: str,
    dtype: torch.dtype,
    weights: Weights = "device",
) -> Mapping[str, int]:
    """What → bytes on the device (for a CPU, in the process) while children are evaluated.

    An upper bound for weights and factors, an estimate for the rest. Files of base and experts
    that stay mapped on a CPU are counted: what the system cannot keep of them it reads again.
    Weights in the host's memory (see `Materialiser`) leave the slots that are on their way; what a
    population multiplies with must be on the device in any case.
    """
    layout, kind, size = shape.layout, device.partition(":")[0], dtype.itemsize
    half = _in_half(kind, dtype)
    population, streams = engine == "population", weights == "host" and kind != "cpu"
    factor = size if population else (2 if half else 4)
    kept = {"model": shape.parameters * size}
    if engine == "vllm":
        kept["vLLM's model"] = kept["model"]
    if not streams:
        kept["pristine base"] = sum(shape.stored)
    if population or not streams:
        kept["factors"] = shape.factor_numbers() * factor
        kept["whole experts"] = _whole(shape, half, only_tails=population)
        if load.cores:
            kept["frames of cores"] = _frames(layout) * factor
    if streams:
        kept["slots on their way"] = _on_their_way(shape, kind, 2 if half else 4)
    if population:
        kept["individuals' tables"] = 2 * load.width * layout.size * size
    rows = load.rows * (load.width if population else 1)
    tokens = min(load.batch_tokens, max(rows, 1) * load.length)
    # And a row that fills rectangles, see `RowCache`.
    kept["keys and values"] = (tokens + load.length) * shape.cache_bytes(size)
    chunk = min(tokens, _CHUNK.get(kind, _CHUNK["cuda"]))
    config = shape.config
    inner = config.intermediate_size or 4 * config.hidden_size
    slots = max(1, tokens // load.length)
    logits = min(_LOGITS, slots * config.vocab_size)
    kept["passes"] = chunk * (6 * config.hidden_size + 3 * inner) * size + 2 * logits * size
    if kind != "cpu":
        block = max(_rows(slot, kind) * math.prod(slot.shape[1:]) for slot in layout.slots)
        kept["scratch"] = (16 if streams else 4) * block + _CONTEXT
    return {what: bytes_ for what, bytes_ in kept.items() if bytes_}


def on_host(shape: Shape, load: Load, *, device: str, dtype: torch.dtype) -> int:
    """Bytes of weights that are kept in the host's memory for a device without room for them."""
    half = _in_half(device.partition(":")[0], dtype)
    numbers = shape.factor_numbers() + (_frames(shape.layout) if load.cores else 0)
    whole = _whole(shape, half=False, only_tails=False)
    return sum(shape.stored) + whole + numbers * (2 if half else 4)


def _in_half(kind: str, dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and (
        kind != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _rows(slot: Slot, kind: str) -> int:
    return rows_at_a_time(slot.shape, kind)


def _on_their_way(shape: Shape, kind: str, factor: int) -> int:
    """Room for two blocks of rows of base, experts and left factors, and for two right factors."""
    sliced, whole = [0], [0]
    layout = shape.layout
    for slot, stored, denses, ranks in zip(
        layout.slots, shape.stored, shape.dense, layout.ranks, strict=True
    ):
        rows, columns = _rows(slot, kind), math.prod(slot.shape[1:])
        tensors = 1 + sum(denses)
        sliced.append(stored * rows // slot.shape[0] * tensors + rows * sum(ranks) * factor)
        whole.append(columns * sum(ranks) * factor)
    return 2 * (max(sliced) + max(whole))


def _whole(shape: Shape, half: bool, *, only_tails: bool) -> int:
    """Dense experts, which are taken whole where all their directions share a scale."""
    total = 0
    rows = zip(
        shape.layout.slots,
        shape.stored,
        shape.dense,
        shape.layout.ranks,
        shape.layout.tails,
        strict=True,
    )
    for slot, stored, denses, ranks, tails in rows:
        for dense, rank, tail in zip(denses, ranks, tails, strict=True):
            complete = slot.is_matrix and rank == min(slot.shape)
            if tail or (dense and complete and not only_tails):
                total += stored
                total += 2 * math.prod(slot.shape) if half and slot.is_matrix and tail else 0
    return total


def _frames(layout: Layout) -> int:
    return sum(
        min(sum(ranks), slot.shape[0]) * slot.shape[0]
        + min(sum(ranks), slot.shape[1]) * slot.shape[1]
        for slot, ranks in zip(layout.slots, layout.ranks, strict=True)
        if slot.is_matrix
    )
