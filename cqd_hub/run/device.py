"""The device and dtype that a recipe means on this machine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cqd_hub.errors import UserError

if TYPE_CHECKING:
    import torch


def find_device(wanted: str) -> str:
    """``cpu``, ``cuda`` or ``cuda:N`` for what a recipe asks.

    Raises:
        UserError: No such device, or not here.
    """
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", wanted):
        raise UserError(
            f"no device {wanted!r}", where="evaluation.device", remedy="use auto, cpu or cuda"
        )
    count = torch.cuda.device_count()
    if wanted != "cpu" and int(wanted.partition(":")[2] or 0) >= count:
        raise UserError(
            f"no device {wanted!r}: this PyTorch sees {count} GPUs",
            where="evaluation.device",
            remedy="use device: cpu or auto",
        )
    return wanted


def find_dtype(wanted: str, device: str) -> torch.dtype:
    """What weights are computed with: float32 on a CPU, bfloat16 on a GPU, unless asked."""
    import torch

    if wanted == "auto":
        wanted = "float32" if device == "cpu" else "bfloat16"
    dtype = getattr(torch, wanted)
    assert isinstance(dtype, torch.dtype)
    return dtype
