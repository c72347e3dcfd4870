"""Whether numbers are finite: one pass, no copy."""

from __future__ import annotations

import torch

from cqd_hub.errors import UserError


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor, on any device, holds neither NaN nor infinity."""
    return tensor.numel() == 0 or bool(extremes(tensor).isfinite().all())


def extremes(tensor: torch.Tensor) -> torch.Tensor:
    """Smallest and largest number: [2], on the tensor's device. NaN if there is one."""
    return torch.stack(torch.aminmax(tensor))


def overflow(name: str, dtype: torch.dtype, *, of: str = "") -> UserError:
    """What to raise where a weight became infinite, or NaN, in *dtype*."""
    kind = str(dtype).removeprefix("torch.")
    return UserError(
        f"holds a number that {kind} cannot hold",
        where=f"{name} of {of}" if of else name,
        remedy="use bfloat16 or float32",
    )
