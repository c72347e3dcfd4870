"""What there is room for: on the device, in the host's memory; and what to do where it is short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine.memory import Load, Shape, on_device
from cqd_hub.files import size_text
from cqd_hub.genome.held import Weights
from cqd_hub.genome.host import free_host_memory, whole_host_memory

_RANKS = (256, 64, 16)
_LEAST_BATCH = 4  # weights may take room from batches until they are a quarter of the recipe's


def free_memory(device: str) -> int:
    """Bytes that are free on a device: a GPU's own, or the host's."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return free_host_memory()


def whole_memory(device: str) -> int:
    """Bytes that a device has, free or not."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[1])
    return whole_host_memory()


def place_weights(
    shape: Shape,
    load: Load,
    *,
    wanted: Literal["auto", "device", "host"],
    engine: str,
    device: str,
    dtype: torch.dtype,
    free: int,
) -> Weights:
    """Where to keep what children are made of: on the device if that leaves room for batches.

    Args:
        wanted: The recipe's ``evaluation.weights``.
        free: Bytes on the device.
    """
    if wanted != "auto":
        return wanted
    part = replace(load, batch_tokens=max(load.length, load.batch_tokens // _LEAST_BATCH))
    kept = on_device(shape, part, engine=engine, device=device, dtype=dtype)
    return "device" if device == "cpu" or sum(kept.values()) <= free else "host"


def fits(
    shape: Shape,
    load: Load,
    *,
    engine: str,
    device: str,
    dtype: torch.dtype,
    weights: Weights,
    free: int,
) -> bool:
    """Whether an engine with a batch of one request fits a device; see `refuse_misfit`."""
    return sum(_least_of(shape, load, engine, device, dtype, weights).values()) <= free


def _least_of(
    shape: Shape, load: Load, engine: str, device: str, dtype: torch.dtype, weights: Weights
) -> dict[str, int]:
    alone = replace(load, rows=1, width=1, batch_tokens=load.length)
    kept = dict(on_device(shape, alone, engine=engine, device=device, dtype=dtype, weights=weights))
    for mapped in ("pristine base", "whole experts") if device == "cpu" else ():
        kept.pop(mapped, None)
    return kept


def refuse_misfit(
    shape: Shape,
    load: Load,
    *,
    engine: str,
    device: str,
    dtype: torch.dtype,
    weights: Weights = "device",
    free: int | None = None,
) -> None:
    """Raise a `UserError` with the arithmetic if an engine does not fit its device.

    Batches count as one request: engines halve them when memory ends. Files that a CPU has mapped
    do not count: the system may drop what it can read again. The remedy names what would fit.

    Args:
        free: Bytes; what `free_memory` says unless given.
    """
    free = free_memory(device) if free is None else free

    def needs(
        shape: Shape, dtype: torch.dtype, place: str = device, weights: Weights = weights
    ) -> dict[str, int]:
        return _least_of(shape, load, engine, place, dtype, weights)

    needed = needs(shape, dtype)
    if sum(needed.values()) <= free:
        return
    parts = " + ".join(f"{what} {size_text(size)}" for what, size in needed.items() if size > 1e6)
    raise UserError(
        f"does not fit: {parts} = {size_text(sum(needed.values()))}, {size_text(free)} are free",
        where=f"evaluation.device: {device}",
        remedy=_remedy(shape, dtype, device, weights, free, needs),
    )


def _remedy(
    shape: Shape,
    dtype: torch.dtype,
    device: str,
    weights: Weights,
    free: int,
    needs: Callable[..., dict[str, int]],
) -> str:
    """The least change that fits."""
    smaller = [dtype] if dtype.itemsize == 2 else [dtype, torch.bfloat16]
    # Streamed from the host's memory, weights take least of a GPU.
    places: list[Weights] = [weights] if device == "cpu" or weights == "host" else [weights, "host"]
    tries = [
        (
            [
                *([] if place == weights else ["evaluation.weights: auto"]),
                *([] if kind == dtype else ["evaluation.dtype: bfloat16"]),
                *([f"genome.rank: {rank} and genome.tail: drop"] if rank else []),
            ],
            needs(shape.at_rank(rank) if rank else shape, kind, weights=place),
        )
        for place in reversed(places)
        for kind in smaller
        for rank in (None, *_RANKS)
    ]
    for said, needed in sorted(tries, key=lambda one: len(one[0])):
        if said and sum(needed.values()) <= free:
            return f"set {', '.join(said)}"
    if device != "cpu" and sum(needs(shape, dtype, "cpu").values()) <= free_host_memory():
        return "set evaluation.device: cpu, or use a device with more memory"
    least = min(sum(needed.values()) for _, needed in tries)
    return f"use a device with more memory: {_least(smaller[-1])} takes {size_text(least)}"


def _least(dtype: torch.dtype) -> str:
    return f"rank {_RANKS[-1]} in {str(dtype).removeprefix('torch.')}"
