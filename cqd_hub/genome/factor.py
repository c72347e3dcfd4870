"""The singular value decomposition of one task vector, in the cheapest way that is exact."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import torch

from cqd_hub.genome.models.experts import Difference, LowRank, blocks
from cqd_hub.genome.store import Factors

_THINNEST = 16  # columns of a Krylov block: thinner ones multiply no faster


class Factored(NamedTuple):
    """A task vector's factors.

    Args:
        up: Rows of `Factors.up`, in order, computed as they are taken.
        down: As in `Factors`.
        energy: ‖τ‖².
        kept: What the factors hold of it.
    """

    up: Iterable[torch.Tensor]
    down: torch.Tensor
    energy: float
    kept: float


def factor(
    delta: torch.Tensor | LowRank, rank: int | Literal["full"]
) -> tuple[Factors, float, float]:
    """Return the factors of `factor_by_rows`, whole, ‖τ‖² and the part of it they hold."""
    up, down, energy, kept = factor_by_rows(delta, rank)
    return Factors(torch.cat(list(up)), down), energy, kept


def factor_by_rows(
    delta: torch.Tensor | LowRank | Difference, rank: int | Literal["full"]
) -> Factored:
    """Return the (truncated) SVD factors.

    A low-rank τ is factored through QR of its factors; *rank* does not apply to it when ``"full"``.
    Few directions of many come from a block Krylov space (Musco and Musco 2015, arXiv 1504.05477,
    algorithm 2), all or most of them from the eigenvectors of the smaller Gram matrix in float64:
    the product is then τ projected on an orthonormal basis, exact however small the singular
    values.
    """
    if isinstance(delta, LowRank):
        left, left_map = torch.linalg.qr(delta.up)
        right, right_map = torch.linalg.qr(delta.down.T)
        u, s, vh = torch.linalg.svd(left_map @ right_map.T, full_matrices=False)
        wanted = len(s) if rank == "full" else min(rank, len(s))
        up = (left @ u[:, :wanted]) * s[:wanted]
        energies = s.double().square()
        down = vh[:wanted] @ right.T
        return Factored([up], down, float(energies.sum()), float(energies[:wanted].sum()))
    rows, columns = tuple(delta.shape)
    smaller = min(rows, columns)
    wanted = smaller if rank == "full" else min(rank, smaller)
    if rows >= columns:
        return _tall(_Passes(delta), (rows, columns), wanted)
    if isinstance(delta, Difference):
        delta = torch.cat([block for _, block in _Passes(delta)])
    parts, down, energy, kept = _tall(_Passes(delta.T), (columns, rows), wanted)
    up = torch.cat(list(parts))
    size = _power(up) or 1.0
    up /= size
    scale = up.norm(dim=0)
    return Factored([down.T * (scale * size)], (up / scale.clamp_min(1e-30)).T, energy, kept)


def cost(shape: tuple[int, ...], rank: int | Literal["full"]) -> float:
    """Floating-point operations of factoring a dense τ, roughly; one in float64 counts as two."""
    small, large = sorted(shape)
    wanted = small if rank == "full" else min(rank, small)
    width, count = _krylov(wanted)
    if 3 * width * count <= 2 * small:
        return 4.0 * large * width * count * (small + width * count)
    return 4.0 * large * small * (small + wanted) + 18.0 * small * small * small


class _Passes:
    """A matrix as (rows, fp32 block) pairs, as often as it is iterated over."""

    def __init__(self, delta: torch.Tensor | Difference) -> None:
        self._delta = delta

    def __iter__(self) -> Iterator[tuple[slice, torch.Tensor]]:
        for rows in blocks(tuple(self._delta.shape)):
            if isinstance(self._delta, Difference):
                yield rows, self._delta.part(rows)
            else:
                yield rows, self._delta[rows]


def _tall(delta: _Passes, shape: tuple[int, int], rank: int) -> Factored:
    """Of a matrix with no more columns than rows."""
    width, count = _krylov(rank)
    if 3 * width * count <= 2 * shape[1]:
        return _leading(delta, shape, rank)
    return _projected(delta, shape, rank)


def _leading(delta: _Passes, shape: tuple[int, int], rank: int) -> Factored:
    """The best factors within the span of Ω, τᵀτΩ, (τᵀτ)²Ω …, Ω random."""
    width, count = _krylov(rank)
    random = torch.Generator().manual_seed(0)
    images = torch.empty(shape[0], count * width)
    spans: list[torch.Tensor] = []
    following = torch.randn(shape[1], width, generator=random)
    energy = 0.0
    for start in range(0, count * width, width):
        spans.append(_orthonormal(following, spans, random))
        following, size = torch.zeros(shape[1], width), 0.0
        for rows, block in delta:
            if start == 0:
                energy += _energy(block)
            images[rows, start : start + width] = image = block @ spans[-1]
            if len(spans) < count:
                size = size or _power(image)  # of its square, only the directions matter
                following.addmm_(block.T, image / (size or 1.0))
    gram = torch.zeros(count * width, count * width, dtype=torch.float64)
    for rows in blocks(tuple(images.shape)):
        exact = images[rows].double()
        gram.addmm_(exact.T, exact)
    inner = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :rank].float()
    up = images @ inner
    kept = _energy(up)
    return Factored([up], (torch.cat(spans, 1) @ inner).T, energy, min(energy, kept))


def _energy(matrix: torch.Tensor) -> float:
    """Sum of squares, which float32 holds of no number below 1e-23 or above 1e19."""
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


def _power(matrix: torch.Tensor) -> float:
    """A power of two about as large as a matrix's largest number; 0 if all are 0."""
    largest = float(matrix.abs().max())
    return 2.0 ** math.frexp(largest)[1] if largest > 0 else 0.0


def _krylov(rank: int) -> tuple[int, int]:
    """Columns of a block and number of blocks, for a space of about 3 · rank dimensions."""
    half = rank // 2 + 4
    width = max(_THINNEST, half)
    return width, max(5, -(-6 * half // width))


def _orthonormal(
    span: torch.Tensor, others: list[torch.Tensor], random: torch.Generator
) -> torch.Tensor:
    """An orthonormal basis of what *span* adds to *others*; random where that is nothing."""
    span = span / (_power(span) or 1.0)
    least = 1e-7 * float(torch.linalg.vector_norm(span, dim=0).max())
    while True:
        for other in others:
            span = span - other @ (other.T @ span)
        span, triangle = torch.linalg.qr(span)
        lost = triangle.diagonal().abs() <= least
        if least == 0.1 and not lost.any():
            return span
        span[:, lost] = torch.randn(len(span), int(lost.sum()), generator=random) / len(span) ** 0.5
        least = 0.1  # again: the first time leaves what rounding put back of the others


def _projected(delta: _Passes, shape: tuple[int, int], rank: int) -> Factored:
    """τ V_r and V_rᵀ, V_r the leading eigenvectors of τᵀτ; float64 a few rows at a time."""
    gram = torch.zeros(shape[1], shape[1], dtype=torch.float64)
    for _, block in delta:
        exact = block.double()
        gram.addmm_(exact.T, exact)
    values, vectors = torch.linalg.eigh(gram)
    energy = float(gram.trace())
    kept = energy if rank == shape[1] else min(energy, float(values[-rank:].sum()))
    down = vectors.flip(1)[:, :rank].clone()
    del gram, vectors
    up = ((block.double() @ down).float() for _, block in delta)
    return Factored(up, down.T.float(), energy, kept)
