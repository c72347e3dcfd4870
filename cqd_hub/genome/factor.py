"""The singular value decomposition of one task vector, in the cheapest way that is exact."""

from __future__ import annotations

from typing import Literal

import torch

from cqd_hub.genome.models.experts import LowRank, blocks
from cqd_hub.genome.store import Factors


def factor(
    delta: torch.Tensor | LowRank, rank: int | Literal["full"]
) -> tuple[Factors, float, float]:
    """Return the (truncated) SVD factors, ‖τ‖² and the part of it that they hold.

    A low-rank τ is factored through QR of its factors; *rank* does not apply to it when ``"full"``.
    Few directions of many are found by randomised iteration, all or most of them from the
    eigenvectors of the smaller Gram matrix in float64: the product is then τ projected on an
    orthonormal basis, exact however small the singular values.
    """
    if isinstance(delta, LowRank):
        left, left_map = torch.linalg.qr(delta.up)
        right, right_map = torch.linalg.qr(delta.down.T)
        u, s, vh = torch.linalg.svd(left_map @ right_map.T, full_matrices=False)
        energy = float(s.square().sum())
        kept = len(s) if rank == "full" else min(rank, len(s))
        product = Factors((left @ u[:, :kept]) * s[:kept], vh[:kept] @ right.T)
        return product, energy, float(s[:kept].square().sum())
    energy = sum(float(delta[rows].square().sum()) for rows in blocks(tuple(delta.shape)))
    largest = min(delta.shape)
    wanted = largest if rank == "full" else min(rank, largest)
    if wanted < largest // 4:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(delta, q=min(wanted + 8, largest), niter=4)
        product = Factors(u[:, :wanted] * s[:wanted], v.T[:wanted])
    elif delta.shape[0] >= delta.shape[1]:
        product = _projected(delta, wanted)
    else:
        up, down = _projected(delta.T, wanted)
        scale = up.norm(dim=0)
        product = Factors(down.T * scale, (up / scale.clamp_min(1e-30)).T)
    return product, energy, min(energy, float(product.up.square().sum()))


def _projected(delta: torch.Tensor, rank: int) -> Factors:
    """τ V_r and V_rᵀ, V_r the leading eigenvectors of τᵀτ; float64 a few rows at a time."""
    parts = list(blocks(tuple(delta.shape)))
    gram = torch.zeros(delta.shape[1], delta.shape[1], dtype=torch.float64)
    for rows in parts:
        exact = delta[rows].double()
        gram.addmm_(exact.T, exact)
    vectors = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :rank]
    up = torch.empty(len(delta), rank)
    for rows in parts:
        up[rows] = (delta[rows].double() @ vectors).float()
    return Factors(up, vectors.T.float())
