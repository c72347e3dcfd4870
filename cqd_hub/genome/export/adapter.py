"""An individual as a PEFT LoRA adapter of the base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from cqd_hub.errors import UserError
from cqd_hub.genome.basis import Basis
from cqd_hub.genome.export.adapter_plan import (
    VLLM_RANKS,
    AdapterDtype,
    AdapterPlan,
    Consumer,
    energy_of,
)
from cqd_hub.genome.export.deltas import Deltas
from cqd_hub.genome.export.output import output_folder
from cqd_hub.genome.export.peft import (
    Purpose,
    Site,
    lora_config,
    lora_tensors,
    vector_tensors,
    wrapper_depths,
)
from cqd_hub.genome.finite import is_finite, overflow
from cqd_hub.genome.genome import Genome
from cqd_hub.genome.models.experts import LowRank
from cqd_hub.genome.stream import tensor_file

if TYPE_CHECKING:
    from cqd_hub.genome.merge.store import MergeStore


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
            adapter can carry, or differs in what it cannot; a factor is beyond what *dtype* holds.
        RunError: Not enough space. Nothing is left behind.
    """
    _check_wishes(rank, error, consumer)
    deltas = Deltas(genome, basis, merges=merges)
    plan = AdapterPlan(deltas, consumer=consumer, decompose=error is not None)
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


class MergingAdapter:
    """An exact adapter of modules alone (no norms, biases, stacks), to be merged into the base.

    Attributes:
        bytes: Of its factors.
    """

    def __init__(self, plan: AdapterPlan) -> None:
        self._plan, self._ranks = plan, plan.ranks(None, None)
        self.bytes = plan.bytes(self._ranks, "float32")

    @classmethod
    def of(cls, deltas: Deltas) -> MergingAdapter | None:
        """One that holds all of *deltas*, or None if none does."""
        plan = AdapterPlan(deltas, consumer="peft", decompose=False)
        beyond = plan.homeless or plan.vectors or any(w.kind == "parameter" for w in plan.sites)
        return cls(plan) if plan.sites and not beyond else None

    def write(self, folder: Path, base_name: str) -> None:
        """Write config and tensors into *folder*."""
        _write(self._plan, self._ranks, folder, "float32", "merge")
        _write_config(self._plan, self._ranks, folder, base_name, "merge")


class _Written(NamedTuple):
    bytes: int
    lost: float


def _write(
    plan: AdapterPlan,
    ranks: Mapping[Site, int],
    folder: Path,
    dtype: AdapterDtype,
    purpose: Purpose,
) -> _Written:
    """Write the tensors module by module; ‖what is missing of τ‖² beside them."""
    basis, size, lost = plan.deltas.basis, 0, plan.left_energy
    used = [where for where, rank in ranks.items() if rank]
    adapted = {
        module
        for where in used
        for module in (where.name, *(where.ties if purpose == "attach" else ()))
    }
    depths = wrapper_depths(basis, used)
    with tensor_file(folder / "adapter_model.safetensors", _names(plan)) as add:
        for name, value in vector_tensors(basis, plan.vectors, adapted):
            _check(name, value)
            add(name, value)
            size += value.nbytes
        for where, rank in ranks.items():
            written = []
            for exact in plan.products(where):
                kept = plan.kept(exact, rank)
                rounded = LowRank(*(part.to(getattr(torch, dtype)) for part in kept))
                for part in rounded:
                    _check(where.name, part)
                if rounded.up is not exact.up:
                    mine = rounded.up.float() @ rounded.down.float()
                    lost += energy_of(exact.up @ exact.down - mine)
                written.append(plan.fitted(where, rounded, rank))
            if not rank:
                continue
            tensors = lora_tensors(where, written, purpose, depth=depths.get(where, 0))
            for name, tensor in tensors.items():
                add(name, tensor)
                size += tensor.nbytes
    return _Written(size, lost)


def _check(name: str, tensor: torch.Tensor) -> None:
    if not is_finite(tensor):
        raise overflow(name, tensor.dtype)


def _write_config(
    plan: AdapterPlan, ranks: Mapping[Site, int], folder: Path, base_name: str, purpose: Purpose
) -> None:
    config = lora_config(
        {where: rank for where, rank in ranks.items() if rank},
        base_name=base_name,
        purpose=purpose,
        modules_to_save=sorted({where.module for where in plan.vectors if where.saved}),
        biases=any(not where.saved for where in plan.vectors),
    )
    text = json.dumps(config, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def _names(plan: AdapterPlan) -> list[str]:
    """As many as may be written, and as long."""
    longest = max(len(slot.name) for slot in plan.deltas.basis.layout.slots)
    tensors = sum(2 + 2 * len(where.ties) for where in plan.sites)
    return ["x" * (longest + 64)] * (tensors + 8 * len(plan.vectors))
