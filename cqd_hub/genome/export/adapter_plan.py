"""What of an individual goes where in an adapter, and which ranks it takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from cqd_hub.errors import UserError
from cqd_hub.genome.export.deltas import Deltas
from cqd_hub.genome.export.peft import Piece, Site, VectorSite, site, vector_site
from cqd_hub.genome.export.ranks import (
    Spectrum,
    decomposed,
    padded,
    smallest_ranks,
    smallest_uniform,
    spectrum,
    truncated,
)
from cqd_hub.genome.models.experts import LowRank
from cqd_hub.genome.stream import return_memory

AdapterDtype = Literal["float32", "bfloat16", "float16"]
Consumer = Literal["peft", "vllm"]
# The values that vLLM's max_lora_rank may have.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class AdapterPlan:
    """What goes where, and how much of the task vector that is: a first pass over all slots.

    Args:
        deltas: The individual.
        consumer: What shall load the adapter.
        decompose: Find every singular value, for `ranks` with a budget.

    Attributes:
        sites: Where factors go.
        vectors: Where a norm or bias goes → its value, fp32.
        left_out: Names of what a consumer refuses and what has no place.
        homeless: Names of what has no place in any adapter.
        energy: ‖τ‖².
        left_energy: That of what is left out.
    """

    def __init__(self, deltas: Deltas, *, consumer: Consumer, decompose: bool) -> None:
        self.deltas, self._consumer, self._decompose = deltas, consumer, decompose
        self.vectors: dict[VectorSite, torch.Tensor] = {}
        self.left_out: list[str] = []
        self.homeless: list[str] = []
        self.energy = self.left_energy = 0.0
        self._inner: dict[Site, int] = {}
        self._spectra: dict[Site, Spectrum] = {}
        self._pieces: dict[Site, list[tuple[int, Piece]]] = {}
        for index in deltas.differing():
            slot = deltas.basis.layout.slots[index]
            if not slot.is_matrix:
                self._add_vector(index)
            elif (found := site(deltas.basis, slot)) is None:
                self._leave_out(index, homeless=True)
            elif consumer == "vllm" and (found[0].kind != "linear" or found[0].vocabulary):
                self._leave_out(index, homeless=False)
            else:
                self._pieces.setdefault(found[0], []).append((index, found[1]))
        for where in self._pieces:
            self._measure(where)
            return_memory()
        self.sites = tuple(self._inner)

    def _measure(self, where: Site) -> None:
        products = self.products(where)
        energy = sum(energy_of(product) for product in products)
        if energy == 0:
            return
        self.energy += energy
        self._inner[where] = max(product.up.shape[1] for product in products)
        values = np.empty(0)
        if self._decompose:
            found = [spectrum(decomposed(product)).values for product in products]
            squares = np.zeros(max(map(len, found)))
            for row in found:
                squares[: len(row)] += row**2
            values = np.sqrt(squares)
        self._spectra[where] = Spectrum(values, where.members * sum(where.shape))

    def _add_vector(self, index: int) -> None:
        basis, slot = self.deltas.basis, self.deltas.basis.layout.slots[index]
        delta, where = self.deltas.delta(index), vector_site(basis, slot)
        if delta is None or not delta.any():
            return
        if where is None or self._consumer == "vllm":
            self._leave_out(index, homeless=where is None)
        else:
            self.energy += energy_of(delta)
            self.vectors[where] = basis.base.weight(slot).float() + delta

    def _leave_out(self, index: int, *, homeless: bool) -> None:
        delta = self.deltas.delta(index)
        if delta is None or not delta.any():
            return
        name, energy = self.deltas.basis.layout.slots[index].name, energy_of(delta)
        self.energy += energy
        self.left_energy += energy
        self.left_out.append(name)
        if homeless and self._consumer == "peft":
            self.homeless.append(name)

    def check(self, out: Path, *, partial: bool) -> None:
        """Refuse what makes no adapter.

        Raises:
            UserError: Nothing to adapt, or something that has no place unless *partial*.
        """
        if self.homeless and not partial:
            raise UserError(
                f"{self.homeless[0]} differs from the base's, and a LoRA adapter has no place for "
                f"it ({len(self.homeless)} such)",
                where=str(out),
                remedy="export a checkpoint, or a partial adapter",
            )
        if not self.sites:
            scope = " that vLLM takes adapters of" if self._consumer == "vllm" else ""
            raise UserError(
                f"no matrix{scope} of this individual differs from the base's",
                where=str(out),
                remedy="export a checkpoint",
            )

    def ranks(self, rank: int | None, budget: float | None) -> dict[Site, int]:
        """Every site's rank, for a wanted one or for a loss of at most *budget*.

        Raises:
            UserError: No ranks keep the loss below it.
        """
        spectra = list(self._spectra.values())
        if budget is not None:
            uniform = smallest_uniform(spectra, budget, VLLM_RANKS)
            if budget < 0 or (self._consumer == "vllm" and uniform is None):
                least = (self.left_energy / self.energy) ** 0.5
                raise UserError(
                    "cannot be reached"
                    + (f": what is left out is {least:.2g} by itself" if self.left_out else ""),
                    where="error",
                    remedy="allow more, use --dtype float32, or export a checkpoint",
                )
            if self._consumer == "vllm" and uniform is not None:
                return dict.fromkeys(self.sites, uniform)
            return dict(zip(self.sites, smallest_ranks(spectra, budget), strict=True))
        if self._consumer == "vllm":
            needed = rank or max(self._inner.values())
            fitting = [allowed for allowed in VLLM_RANKS if allowed >= needed]
            return dict.fromkeys(self.sites, fitting[0] if fitting else VLLM_RANKS[-1])
        return {
            where: inner if rank is None else min(rank, inner)
            for where, inner in self._inner.items()
        }

    def bytes(self, ranks: Mapping[Site, int], dtype: AdapterDtype) -> int:
        """What factors of these ranks and the vectors take."""
        numbers = sum(self._spectra[where].cost * rank for where, rank in ranks.items())
        size = numbers * getattr(torch, dtype).itemsize
        return size + sum(vector.nbytes for vector in self.vectors.values())

    def products(self, where: Site) -> list[LowRank]:
        """The exact products of a site's matrices."""
        members: list[list[LowRank]] = [[] for _ in range(where.members)]
        for index, piece in self._pieces[where]:
            product = self.deltas.matrix(index)
            if product is not None:
                members[piece.member].append(_placed(product, piece, where.shape))
        return [_summed(products, where.shape) for products in members]

    def kept(self, exact: LowRank, rank: int) -> LowRank:
        """What of an exact product goes into an adapter of this rank."""
        if self._decompose:
            up, down = decomposed(exact)
            return LowRank(up[:, :rank], down[:rank])
        return truncated(exact, rank)

    def fitted(self, where: Site, product: LowRank, rank: int) -> LowRank:
        """Padded with zeros where all of a stack, or all of an adapter, have one rank."""
        return padded(product, rank) if where.members > 1 or self._consumer == "vllm" else product


def energy_of(delta: LowRank | torch.Tensor) -> float:
    """‖delta‖²."""
    if isinstance(delta, LowRank):
        up, down = delta
        if up.shape[1] < min(up.shape[0], down.shape[1]):
            up = torch.linalg.qr(up).R
        delta = up @ down
    return float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2


def _placed(product: LowRank, piece: Piece, shape: tuple[int, int]) -> LowRank:
    """The product as a block of a larger matrix that is 0 elsewhere."""
    up, down = (product.down.T, product.up.T) if piece.transposed else product
    if (up.shape[0], down.shape[1]) == shape:
        return LowRank(up, down)
    below, right = shape[0] - piece.row - up.shape[0], shape[1] - piece.column - down.shape[1]
    pad = torch.nn.functional.pad
    return LowRank(pad(up, (0, 0, piece.row, below)), pad(down, (piece.column, right)))


def _summed(products: list[LowRank], shape: tuple[int, int]) -> LowRank:
    if len(products) == 1:
        return products[0]
    if not products:
        return LowRank(torch.zeros(shape[0], 0), torch.zeros(0, shape[1]))
    up = torch.cat([product.up for product in products], 1)
    down = torch.cat([product.down for product in products])
    if up.shape[1] < min(shape):
        return LowRank(up, down)
    whole = up @ down
    return LowRank(
        *(whole, torch.eye(shape[1])) if shape[0] >= shape[1] else (torch.eye(shape[0]), whole)
    )
