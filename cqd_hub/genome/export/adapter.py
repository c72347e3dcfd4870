"""An individual as a PEFT LoRA adapter of the base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from cqd_hub.errors import UserError
from cqd_hub.genome.basis import Basis
from cqd_hub.genome.experts import LowRank
from cqd_hub.genome.export.deltas import Deltas
from cqd_hub.genome.export.output import output_folder
from cqd_hub.genome.export.peft import (
    Purpose,
    Site,
    VectorSite,
    lora_config,
    lora_tensors,
    site,
    vector_site,
    vector_tensors,
)
from cqd_hub.genome.export.ranks import (
    Spectrum,
    decomposed,
    padded,
    smallest_ranks,
    smallest_uniform,
    spectrum,
    truncated,
)
from cqd_hub.genome.export.stream import tensor_file
from cqd_hub.genome.genome import Genome

if TYPE_CHECKING:
    from cqd_hub.genome.merge.store import MergeStore

AdapterDtype = Literal["float32", "bfloat16", "float16"]
Consumer = Literal["peft", "vllm"]
# The values that vLLM's max_lora_rank may have.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class AdapterExport(NamedTuple):
    """What was written.

    Args:
        path: The folder.
        bytes: Of tensors.
        rank: The largest of any module.
        relative_error: ‖τ - written‖ / ‖τ‖ over the whole task vector: what is truncated, left out,
            and rounded to a half precision. 0 for an exact fp32 adapter.
        left_out: Names of the tensors that the adapter does not touch though they differ.
    """

    path: Path
    bytes: int
    rank: int
    relative_error: float
    left_out: tuple[str, ...]


def export_adapter(
    genome: Genome,
    basis: Basis,
    out: Path,
    *,
    base_name: str,
    rank: int | None = None,
    error: float | None = None,
    dtype: AdapterDtype = "float32",
    consumer: Consumer = "peft",
    partial: bool = False,
    purpose: Purpose = "attach",
    merges: MergeStore | None = None,
) -> AdapterExport:
    """Write the individual as a LoRA adapter that PEFT loads onto the base.

    Each module has its own rank (``rank_pattern`` with an equal ``alpha_pattern``: scaling 1);
    norms go in ``modules_to_save``, biases beside the factors (``bias: all``). Tails, Gaussian
    noise, merges and full-rank experts make some modules full rank: exact then costs more bytes
    than a checkpoint; give a *rank* or an *error*, or export a checkpoint.

    Args:
        base_name: Hub id or path of the base, written into the config.
        rank: Truncate every module to this rank; exact unless given.
        error: Instead, the least bytes with this relative error at most.
        dtype: Of the factors.
        consumer: ``"vllm"`` writes what vLLM accepts: linear layers alone, no norms, biases,
            embeddings or head, one rank for all, out of `VLLM_RANKS`.
        partial: Leave out what PEFT's LoRA has no place for (stacked experts, added rows of a
            vocabulary) instead of refusing; it is counted in the stated error.
        purpose: Matters only for tied embeddings. ``"attach"`` is right as long as the adapter
            stays attached, ``"merge"`` once it is merged (``merge_and_unload``): PEFT merges an
            adapter of both ends twice into their one weight, and an adapter of the embedding
            alone leaves the head as it was until merged.
        merges: Where the merges are that the genome weighs.

    Raises:
        UserError: *out* exists, no such rank or error, the individual is the base in all that an
            adapter can carry, or differs in what it cannot.
        RunError: Not enough space. Nothing is left behind.
    """
    _check_wishes(rank, error, consumer)
    deltas = Deltas(genome, basis, merges=merges)
    plan = _Plan(deltas, consumer=consumer, decompose=error is not None)
    plan.check(out, partial=partial)
    bound = None if error is None else error**2 * plan.energy
    budget = None if bound is None else bound - plan.left_energy
    ranks = plan.ranks(rank, budget)
    key = {"form": "adapter", "genome": genome.hash, "basis": genome.basis}
    with output_folder(out, needed=plan.bytes(ranks, dtype), key=key) as folder:
        made = _write(plan, ranks, folder, dtype, purpose)
        while bound is not None and budget is not None and made.lost > bound:
            budget -= made.lost - bound  # rounding to *dtype* takes its part
            ranks = plan.ranks(rank, budget)
            made = _write(plan, ranks, folder, dtype, purpose)
        _write_config(plan, ranks, folder, base_name, purpose)
    largest = max(ranks.values())
    relative = (made.lost / plan.energy) ** 0.5
    return AdapterExport(out, made.bytes, largest, relative, tuple(plan.left_out))


def _check_wishes(rank: int | None, error: float | None, consumer: Consumer) -> None:
    if rank is not None and error is not None:
        raise UserError("excludes an error", where="rank", remedy="give one of the two")
    if rank is not None and rank < 1:
        raise UserError(f"{rank} is not a rank", where="rank", remedy="give 1 or more, or none")
    if error is not None and not 0 < error < 1:
        raise UserError(f"{error} is not an error", where="error", remedy="give e.g. 0.01")
    if consumer == "vllm" and rank is not None and rank not in VLLM_RANKS:
        known = ", ".join(map(str, VLLM_RANKS))
        raise UserError(f"vLLM has no rank {rank}", where="rank", remedy=f"give one of {known}")


class _Plan:
    """What goes where, and how much of the task vector that is: a first pass over all slots.

    Attributes:
        sites: Slot number → where its factors go.
        vectors: Where a norm or bias goes → its value, fp32.
        left_out: Names of what a consumer refuses and what has no place.
        homeless: Names of what has no place in any adapter.
        energy: ‖τ‖².
        left_energy: That of what is left out.
    """

    def __init__(self, deltas: Deltas, *, consumer: Consumer, decompose: bool) -> None:
        self.deltas, self._consumer, self.decompose = deltas, consumer, decompose
        self.sites: dict[int, Site] = {}
        self.vectors: dict[VectorSite, torch.Tensor] = {}
        self.left_out: list[str] = []
        self.homeless: list[str] = []
        self.energy = self.left_energy = 0.0
        self._inner: dict[int, int] = {}
        self._spectra: dict[int, Spectrum] = {}
        for index, product in deltas.matrices():
            self._add_matrix(index, product)
        for index, delta in deltas.vectors():
            self._add_vector(index, delta)

    def _add_matrix(self, index: int, product: LowRank) -> None:
        slot = self.deltas.basis.layout.slots[index]
        where = site(self.deltas.basis, slot)
        energy = _energy_of(product)
        if energy == 0:
            return
        self.energy += energy
        refused = where is not None and (where.kind != "linear" or where.vocabulary)
        if where is None or (self._consumer == "vllm" and refused):
            self._leave_out(slot.name, energy, homeless=where is None)
            return
        self.sites[index] = where
        self._inner[index] = product.up.shape[1]
        self._spectra[index] = (
            spectrum(decomposed(product))
            if self.decompose
            else Spectrum(np.empty(0), sum(slot.shape))
        )

    def _add_vector(self, index: int, delta: torch.Tensor) -> None:
        basis, slot = self.deltas.basis, self.deltas.basis.layout.slots[index]
        where, energy = vector_site(basis, slot), _energy(delta)
        if energy == 0:
            return
        self.energy += energy
        if where is None or self._consumer == "vllm":
            self._leave_out(slot.name, energy, homeless=where is None)
        else:
            self.vectors[where] = basis.base.weight(slot).float() + delta

    def _leave_out(self, name: str, energy: float, *, homeless: bool) -> None:
        self.left_out.append(name)
        self.left_energy += energy
        if homeless and self._consumer == "peft":
            self.homeless.append(name)

    def check(self, out: Path, *, partial: bool) -> None:
        """Refuse what makes no adapter."""
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

    def ranks(self, rank: int | None, budget: float | None) -> dict[int, int]:
        """Every module's rank, for a wanted one or for a loss of at most *budget*.

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
            index: inner if rank is None else min(rank, inner)
            for index, inner in self._inner.items()
        }

    def bytes(self, ranks: Mapping[int, int], dtype: AdapterDtype) -> int:
        """What factors of these ranks and the vectors take."""
        numbers = sum(self._spectra[i].cost * rank for i, rank in ranks.items())
        size = numbers * getattr(torch, dtype).itemsize
        return size + sum(vector.nbytes for vector in self.vectors.values())

    def factors(self, index: int, rank: int) -> tuple[LowRank, LowRank]:
        """A slot's exact product, and what of it goes into the adapter."""
        exact = self.deltas.matrix(index)
        assert exact is not None  # it was planned
        if self.decompose:
            up, down = decomposed(exact)
            kept = LowRank(up[:, :rank], down[:rank])
        else:
            kept = truncated(exact, rank)
        return exact, padded(kept, rank) if self._consumer == "vllm" else kept


class MergingAdapter:
    """An exact adapter of matrices alone, to be merged into the base.

    Attributes:
        bytes: Of its factors.
    """

    def __init__(self, plan: _Plan) -> None:
        self._plan, self._ranks = plan, plan.ranks(None, None)
        self.bytes = plan.bytes(self._ranks, "float32")

    @classmethod
    def of(cls, deltas: Deltas) -> MergingAdapter | None:
        """One that holds all of *deltas*, or None if none does."""
        plan = _Plan(deltas, consumer="peft", decompose=False)
        return cls(plan) if plan.sites and not (plan.homeless or plan.vectors) else None

    def write(self, folder: Path, base_name: str) -> None:
        """Write config and tensors into *folder*."""
        _write(self._plan, self._ranks, folder, "float32", "merge")
        _write_config(self._plan, self._ranks, folder, base_name, "merge")


class _Written(NamedTuple):
    bytes: int
    lost: float


def _write(
    plan: _Plan, ranks: Mapping[int, int], folder: Path, dtype: AdapterDtype, purpose: Purpose
) -> _Written:
    """Write the tensors module by module; ‖what is missing of τ‖² beside them."""
    basis, size, lost = plan.deltas.basis, 0, plan.left_energy
    adapted = {
        module
        for index, where in plan.sites.items()
        if ranks[index]
        for module in (where.module, *(where.ties if purpose == "attach" else ()))
    }
    with tensor_file(folder / "adapter_model.safetensors", _names(plan)) as add:
        for name, value in vector_tensors(basis, plan.vectors, adapted):
            add(name, value)
            size += value.nbytes
        for index, rank in ranks.items():
            exact, kept = plan.factors(index, rank)
            if not rank:
                lost += _energy_of(exact)
                continue
            rounded = LowRank(*(part.to(getattr(torch, dtype)) for part in kept))
            if rounded.up is not exact.up:
                lost += _energy(exact.up @ exact.down - rounded.up.float() @ rounded.down.float())
            for name, tensor in lora_tensors(plan.sites[index], rounded, purpose).items():
                add(name, tensor)
                size += tensor.nbytes
    return _Written(size, lost)


def _write_config(
    plan: _Plan, ranks: Mapping[int, int], folder: Path, base_name: str, purpose: Purpose
) -> None:
    config = lora_config(
        {plan.sites[index]: rank for index, rank in ranks.items() if rank},
        base_name=base_name,
        purpose=purpose,
        modules_to_save=sorted({where.module for where in plan.vectors if where.saved}),
        biases=any(not where.saved for where in plan.vectors),
    )
    text = json.dumps(config, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def _names(plan: _Plan) -> list[str]:
    """As many as may be written, and as long."""
    longest = max(len(slot.name) for slot in plan.deltas.basis.layout.slots)
    tensors = sum(2 + 2 * len(where.ties) for where in plan.sites.values())
    return ["x" * (longest + 64)] * (tensors + 8 * len(plan.vectors))


def _energy_of(product: LowRank) -> float:
    up, down = product
    if up.shape[1] < min(up.shape[0], down.shape[1]):
        return _energy(torch.linalg.qr(up).R @ down)
    return _energy(up @ down)


def _energy(delta: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2
