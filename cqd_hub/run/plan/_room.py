"""What there is room for: on the device, in the host's memory; and what to do where it is short."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine.memory import Load, Shape, on_device
from cqd_hub.files import size_text

_RANKS = (256, 64, 16)
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def free_memory(device: str) -> int:
    """Bytes that are free on a device: a GPU's own, or the host's."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return free_host_memory()


def free_host_memory() -> int:
    """Bytes that this process may still take; what files are cached with counts as free."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        told = {name: value for name, _, value in (line.partition(":") for line in lines)}
        free = int(told["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(_CGROUP.read_text()) - resident()
    except (OSError, ValueError):
        return free
    return min(free, max(limit, 0))


def resident() -> int:
    """Bytes of memory that this process has now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def refuse_misfit(
    shape: Shape,
    load: Load,
    *,
    engine: str,
    device: str,
    dtype: torch.dtype,
    free: int | None = None,
) -> None:
    """Raise a `UserError` with the arithmetic if an engine does not fit its device.

    Batches count as one request: engines halve them when memory ends. Files that a CPU has mapped
    do not count: the system may drop what it can read again. The remedy names what would fit.

    Args:
        free: Bytes; what `free_memory` says unless given.
    """
    free = free_memory(device) if free is None else free
    alone = replace(load, rows=1, width=1, batch_tokens=load.length)

    def needs(shape: Shape, dtype: torch.dtype, place: str = device) -> dict[str, int]:
        kept = dict(on_device(shape, alone, engine=engine, device=place, dtype=dtype))
        for mapped in ("pristine base", "whole experts") if place == "cpu" else ():
            kept.pop(mapped, None)
        return kept

    needed = needs(shape, dtype)
    if sum(needed.values()) <= free:
        return
    parts = " + ".join(f"{what} {size_text(size)}" for what, size in needed.items() if size > 1e6)
    raise UserError(
        f"does not fit: {parts} = {size_text(sum(needed.values()))}, {size_text(free)} are free",
        where=f"evaluation.device: {device}",
        remedy=_remedy(shape, dtype, device, free, needs),
    )


def _remedy(
    shape: Shape,
    dtype: torch.dtype,
    device: str,
    free: int,
    needs: Callable[..., dict[str, int]],
) -> str:
    """The least change that fits."""
    smaller = [dtype] if dtype.itemsize == 2 else [dtype, torch.bfloat16]
    tries = [
        (
            [
                *([] if kind == dtype else ["evaluation.dtype: bfloat16"]),
                *([f"genome.rank: {rank} and genome.tail: drop"] if rank else []),
            ],
            needs(shape.at_rank(rank) if rank else shape, kind),
        )
        for kind in smaller
        for rank in (None, *_RANKS)
    ]
    for said, needed in sorted(tries, key=lambda one: len(one[0])):
        if said and sum(needed.values()) <= free:
            return f"set {', '.join(said)}"
    if device != "cpu" and sum(needs(shape, dtype, "cpu").values()) <= free_host_memory():
        return "set evaluation.device: cpu, or use a device with more memory"
    least = sum(tries[-1][1].values())
    return f"use a device with more memory: {_least(smaller[-1])} takes {size_text(least)}"


def _least(dtype: torch.dtype) -> str:
    return f"rank {_RANKS[-1]} in {str(dtype).removeprefix('torch.')}"
