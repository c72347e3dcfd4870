"""Base and experts to basis: every expert's singular directions, cached by content hash.

The SVD of a task vector is not unique (signs, near-equal singular values) and differs between
machines, so a genome names the hash of the very factors its coefficients scale.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cqd_hub.errors import UserError
from cqd_hub.files import sha256_of
from cqd_hub.genome.experts import Base, FullExpert, LoraExpert, LowRank
from cqd_hub.genome.layout import Kind, Layout, Slot

Tail = Literal["tied", "drop"]
_ALGORITHM = "2"


class Factors(NamedTuple):
    """One expert in one matrix slot: τ ≈ up @ down.

    ``up`` is U·diag(S) [out, r], ``down`` is Vᵀ [r, in], fp32, singular values descending.
    """

    up: torch.Tensor
    down: torch.Tensor


class Frame(NamedTuple):
    """Orthonormal frame of all experts' directions in one slot.

    [up_1 … up_K] = left @ left_map and [down_1; …; down_K]ᵀ = right @ right_map.
    """

    left: torch.Tensor
    left_map: torch.Tensor
    right: torch.Tensor
    right_map: torch.Tensor


@dataclass(frozen=True)
class Basis:
    """All that turns a genome's coefficients into weights, on the CPU."""

    base: Base
    experts: tuple[FullExpert | LoraExpert, ...]
    layout: Layout
    factors: tuple[dict[str, Factors], ...]
    retained: tuple[dict[str, float], ...]
    hash: str

    @cached_property
    def _frames(self) -> dict[str, Frame]:
        return {}

    def frame(self, slot: str) -> Frame:
        """The frame that a genome's core in *slot* is expressed in (computed once)."""
        if slot not in self._frames:
            present = [factors[slot] for factors in self.factors if slot in factors]
            left, left_map = torch.linalg.qr(torch.cat([f.up for f in present], 1))
            right, right_map = torch.linalg.qr(torch.cat([f.down for f in present], 0).T)
            self._frames[slot] = Frame(left, left_map, right, right_map)
        return self._frames[slot]

    def expert_weight(self, slot: int, expert: int) -> torch.Tensor:
        """A full fine-tune's own tensor, in the dtype it was saved in."""
        full = self.experts[expert]
        if not isinstance(full, FullExpert):
            raise TypeError(f"expert {expert} is an adapter")
        return full.weight(self.layout.slots[slot].name)

    @property
    def has_tails(self) -> bool:
        """Whether some matrix has a tail, so that the factors alone do not rebuild its expert."""
        return any(
            slot.kind == "matrix" and any(tails)
            for slot, tails in zip(self.layout.slots, self.layout.tails, strict=True)
        )


def cache_folder() -> Path:
    """Where bases are kept: ``$CQD_HUB_CACHE``, else ``cqd-hub`` in the user's cache folder."""
    if folder := os.environ.get("CQD_HUB_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cqd-hub"


def build_basis(
    base: Base,
    experts: Sequence[FullExpert | LoraExpert],
    *,
    rank: int | Literal["full"] = "full",
    tail: Tail = "tied",
    cache: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Basis:
    """Factor every expert's task vector, or take the factors from the cache.

    Args:
        base: The common ancestor.
        experts: At least one; LoRA adapters keep their own rank, exactly.
        rank: Singular directions with a scale of their own per matrix of a full fine-tune.
        tail: What becomes of a full fine-tune beyond *rank*: ``"tied"`` keeps it exactly under one
            shared scale, ``"drop"`` leaves it out (an expert is then only approximated).
        cache: Folder of cached factors; `cache_folder` unless given.
        progress: Called with one line per expert that has to be factored.

    Raises:
        UserError: Rank larger than every matrix, NaN weights, expert equal to the base.
    """
    slots = tuple(_slot(base, name) for name in base.names)
    largest = max((min(slot.shape) for slot in slots if slot.kind == "matrix"), default=0)
    if rank != "full" and not 1 <= rank <= largest:
        raise UserError(
            f"rank {rank} is not within 1 to {largest}, the largest rank of this model",
            where="genome.rank",
            remedy="use rank: full",
        )
    folder = (cache or cache_folder()) / "basis"
    stored = [_factored(base, expert, slots, rank, folder, progress) for expert in experts]
    layout = _layout(slots, experts, [entry.factors for entry in stored], tail)
    digest = hashlib.sha256(base.checkpoint.content_hash.encode())
    for expert, entry in zip(experts, stored, strict=True):
        digest.update(f"{expert.content_hash} {entry.hash}".encode())
    digest.update(tail.encode())
    return Basis(
        base=base,
        experts=tuple(experts),
        layout=layout,
        factors=tuple(entry.factors for entry in stored),
        retained=tuple(entry.retained for entry in stored),
        hash=digest.hexdigest(),
    )


class _Stored(NamedTuple):
    factors: dict[str, Factors]
    retained: dict[str, float]
    hash: str


def _slot(base: Base, name: str) -> Slot:
    shape = base.checkpoint.headers[name].shape
    if len(shape) > 2:
        raise UserError(
            f"{name} has {len(shape)} dimensions; only matrices and vectors are supported",
            where=str(base.checkpoint.path),
            remedy="choose a dense text model",
        )
    kind: Kind = "matrix" if len(shape) == 2 else "vector"
    return Slot(name, shape, kind)


def _layout(
    slots: tuple[Slot, ...],
    experts: Sequence[FullExpert | LoraExpert],
    factors: Sequence[dict[str, Factors]],
    tail: Tail,
) -> Layout:
    ranks, tails = [], []
    for slot in slots:
        row = tuple(f[slot.name].up.shape[1] if slot.name in f else 0 for f in factors)
        ranks.append(row)
        tails.append(
            tuple(
                isinstance(expert, FullExpert)
                and (slot.kind == "vector" or (tail == "tied" and 0 < rank < min(slot.shape)))
                for expert, rank in zip(experts, row, strict=True)
            )
        )
    return Layout(slots, tuple(e.content_hash for e in experts), tuple(ranks), tuple(tails))


def _factored(
    base: Base,
    expert: FullExpert | LoraExpert,
    slots: tuple[Slot, ...],
    rank: int | Literal["full"],
    folder: Path,
    progress: Callable[[str], None],
) -> _Stored:
    rank = "full" if isinstance(expert, LoraExpert) else rank
    key = " ".join([_ALGORITHM, base.checkpoint.content_hash, expert.content_hash, str(rank)])
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
    if path.exists():
        try:
            return _read(path)
        except SafetensorError:
            progress(f"{path} is damaged; factoring again")
    progress(f"factoring {expert.path.name} (rank {rank})")
    _write(path, *_factor_all(expert, slots, rank))
    return _read(path)


def _factor_all(
    expert: FullExpert | LoraExpert, slots: tuple[Slot, ...], rank: int | Literal["full"]
) -> tuple[dict[str, Factors], dict[str, float]]:
    factors, retained, changed = {}, {}, False
    for slot in slots:
        delta = expert.task_vector(slot.name)
        if delta is None:
            continue
        if slot.kind == "vector":
            changed |= isinstance(delta, torch.Tensor) and bool(delta.any())
            continue
        product, energy, kept = factor(delta, rank)
        if energy > 0:
            changed = True
            factors[slot.name], retained[slot.name] = product, kept / energy
    if not changed:
        raise UserError("is identical to the base", where=str(expert.path), remedy="leave it out")
    return factors, retained


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
    energy = float(delta.square().sum())
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
    """τ V_r and V_rᵀ, V_r the leading eigenvectors of τᵀτ."""
    exact = delta.double()
    vectors = torch.linalg.eigh(exact.T @ exact).eigenvectors.flip(1)[:, :rank]
    return Factors((exact @ vectors).float(), vectors.T.float())


def _write(path: Path, factors: dict[str, Factors], retained: dict[str, float]) -> None:
    tensors = {}
    for slot, (up, down) in factors.items():
        tensors[f"up:{slot}"], tensors[f"down:{slot}"] = up.contiguous(), down.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".basis-", dir=path.parent)
    os.close(descriptor)
    try:
        save_file(tensors, temporary, metadata={"retained": json.dumps(retained)})
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _read(path: Path) -> _Stored:
    factors = {}
    with safe_open(path, framework="pt") as opened:
        retained = json.loads(opened.metadata()["retained"])
        for slot in retained:
            factors[slot] = Factors(
                opened.get_tensor(f"up:{slot}"), opened.get_tensor(f"down:{slot}")
            )
    return _Stored(factors, retained, sha256_of(path))
