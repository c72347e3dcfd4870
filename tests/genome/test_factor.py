"""Task vectors of any size that float32 holds."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from cqd_hub.genome.factor import factor
from cqd_hub.genome.models.experts import LowRank


@pytest.mark.parametrize("size", [1e-30, 1e-23, 1e18, 1e30])
@pytest.mark.parametrize("rank", [3, "full"])
@pytest.mark.parametrize("shape", [(200, 150), (150, 200)])
def test_a_dense_task_vector_of_any_size(
    shape: tuple[int, int], rank: int | Literal["full"], size: float
) -> None:
    """The squares of such numbers are 0 or infinite in fp32."""
    torch.manual_seed(0)
    delta = torch.randn(*shape) @ torch.diag(torch.logspace(0, -3, shape[1]))
    plain, energy, kept = factor(delta, rank)
    factors, scaled, held = factor(delta * size, rank)
    assert scaled == pytest.approx(energy * size**2, rel=1e-5, abs=0)
    assert held / scaled == pytest.approx(kept / energy, rel=1e-5, abs=0)
    found = factors.up.double() @ factors.down.double() / size
    assert torch.allclose(found, plain.up.double() @ plain.down.double(), atol=1e-4)


@pytest.mark.parametrize("size", [1e-12, 1e10])
def test_a_low_rank_task_vector_of_any_size(size: float) -> None:
    torch.manual_seed(0)
    delta = LowRank(torch.randn(40, 4), torch.randn(4, 30))
    _, energy, kept = factor(delta, "full")
    factors, scaled, held = factor(LowRank(*(part * size for part in delta)), "full")
    assert scaled == pytest.approx(energy * size**4, rel=1e-5, abs=0)
    assert held / scaled == pytest.approx(kept / energy)
    found = factors.up.double() @ factors.down.double() / size**2
    assert torch.allclose(found, (delta.up @ delta.down).double(), atol=1e-4)


@pytest.mark.parametrize("rank", [3, "full"])
def test_nothing_has_no_energy(rank: int | Literal["full"]) -> None:
    factors, energy, _ = factor(torch.zeros(60, 50), rank)
    assert energy == 0
    assert factors.up.isfinite().all()
    assert factors.down.isfinite().all()
