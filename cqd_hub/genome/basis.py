"""Base and experts to basis: every expert's singular directions, cached by content hash.

The SVD of a task vector is not unique (signs, near-equal singular values) and differs between
machines, so a genome names the hash of the very factors its coefficients scale.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from cqd_hub.errors import UserError
from cqd_hub.files import cache_folder, size_text
from cqd_hub.genome.factor import cost, factor_by_rows
from cqd_hub.genome.layout import Layout, Slot
from cqd_hub.genome.models.experts import Base, Expert, FullExpert, LowRank, streamed
from cqd_hub.genome.store import FactorStore, FactorWriter, check_room, exclusive, written

Rank = int | Literal["full"]
Tail = Literal["tied", "drop"]
_ALGORITHM = "4"


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
    """All that turns a genome's coefficients into weights; factors are read when asked for."""

    base: Base
    experts: tuple[Expert, ...]
    layout: Layout
    factors: tuple[FactorStore, ...]
    hash: str

    @property
    def retained(self) -> tuple[dict[str, float], ...]:
        """Per expert, slot name → share of ‖τ‖² that its factors hold."""
        return tuple(store.retained for store in self.factors)

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

    def is_dense(self, slot: int, expert: int) -> bool:
        """Whether an expert's task vector in a slot is dense, so that factors may truncate it."""
        return self.experts[expert].form(self.layout.slots[slot]) == "dense"

    def expert_weight(self, slot: int, expert: int) -> torch.Tensor:
        """An expert's own weights in a dense slot, in the dtype they were saved in."""
        return self.experts[expert].weight(self.layout.slots[slot])

    @property
    def has_tails(self) -> bool:
        """Whether some matrix has a tail, so that the factors alone do not rebuild its expert."""
        return any(
            slot.is_matrix and any(tails)
            for slot, tails in zip(self.layout.slots, self.layout.tails, strict=True)
        )


def build_basis(
    base: Base,
    experts: Sequence[Expert],
    *,
    rank: Rank = "full",
    tail: Tail = "tied",
    cache: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Basis:
    """Factor every expert's task vector, or take the factors from the cache.

    Slot by slot, and the largest slots a few rows at a time: factors are written as they come.

    Args:
        base: The common ancestor.
        experts: At least one; LoRA factors keep their own rank, exactly.
        rank: Singular directions with a scale of their own per matrix of a dense task vector.
        tail: What becomes of a dense task vector beyond *rank*: ``"tied"`` keeps it exactly under
            one shared scale, ``"drop"`` leaves it out (an expert is then only approximated).
        cache: Folder of cached factors; `cache_folder` unless given.
        progress: Called with a line per expert that has to be factored: what it costs, how far.

    Raises:
        UserError: Rank larger than every matrix, NaN weights, expert equal to the base or to
            another, no room for all that is to be factored.
        RunError: The cache's disk fails; a later call carries on.
    """
    slots = base.slots
    largest = max((min(slot.shape) for slot in slots if slot.is_matrix), default=0)
    if rank != "full" and not 1 <= rank <= largest:
        raise UserError(
            f"rank {rank} is not within 1 to {largest}, the largest rank of this model",
            where="genome.rank",
            remedy="use rank: full",
        )
    folder = (cache or cache_folder()) / "basis"
    check_room(folder, sum(_missing(base, expert, rank, folder) for expert in experts))
    stores = [_factored(base, expert, rank, folder, progress) for expert in experts]
    return basis_of_factors(base, experts, stores, tail=tail)


def basis_of_factors(
    base: Base, experts: Sequence[Expert], stores: Sequence[FactorStore], *, tail: Tail = "tied"
) -> Basis:
    """The basis whose factors are those in *stores*, one for each expert; see `build_basis`."""
    layout = _layout(base.slots, experts, stores, tail)
    digest = hashlib.sha256(base.content_hash.encode())
    for expert, store in zip(experts, stores, strict=True):
        digest.update(f"{expert.content_hash} {store.hash}".encode())
    digest.update(tail.encode())
    return Basis(
        base=base,
        experts=tuple(experts),
        layout=layout,
        factors=tuple(stores),
        hash=digest.hexdigest(),
    )


def _layout(
    slots: tuple[Slot, ...], experts: Sequence[Expert], stores: Sequence[FactorStore], tail: Tail
) -> Layout:
    ranks, tails = [], []
    for slot in slots:
        row = tuple(store.ranks.get(slot.name, 0) for store in stores)
        ranks.append(row)
        tails.append(
            tuple(
                expert.form(slot) == "dense"
                and (not slot.is_matrix or (tail == "tied" and 0 < rank < min(slot.shape)))
                for expert, rank in zip(experts, row, strict=True)
            )
        )
    return Layout(slots, tuple(e.content_hash for e in experts), tuple(ranks), tuple(tails))


def is_factored(base: Base, expert: Expert, rank: Rank, cache: Path | None = None) -> bool:
    """Whether an expert's factors are in the cache; hashes its weights."""
    return FactorStore(_place(base, expert, rank, (cache or cache_folder()) / "basis")).intact()


def _factored(
    base: Base, expert: Expert, rank: Rank, folder: Path, progress: Callable[[str], None]
) -> FactorStore:
    place = _place(base, expert, rank, folder)
    with exclusive(place):
        if place.exists():
            store = FactorStore(place)
            if store.intact():
                return store
            progress(f"{place} is damaged; factoring again")
            shutil.rmtree(place)
        partial = _partial(place)
        writer = FactorWriter(partial)
        try:
            _factor_all(base.slots, expert, rank, writer, progress)
        except UserError:  # at fault are these very files: nobody will carry on from here
            shutil.rmtree(partial)
            raise
        partial.rename(place)
    return FactorStore(place)


def refuse_twins(experts: Sequence[Expert]) -> None:
    """Raise a `UserError` if two experts are one: coefficients could not be told apart by hash."""
    known: dict[str, Expert] = {}
    for expert in experts:
        other = known.setdefault(expert.content_hash, expert)
        if other is not expert:
            raise UserError(
                f"is the same expert as {other.path}", where=str(expert.path), remedy="list it once"
            )


def _place(base: Base, expert: Expert, rank: Rank, folder: Path) -> Path:
    """Where an expert's factors are cached: by all that decides them."""
    slots = [(slot.name, slot.shape, slot.kind, slot.tensor, slot.index) for slot in base.slots]
    key = [_ALGORITHM, base.content_hash, expert.content_hash, str(rank), json.dumps(slots)]
    if isinstance(expert, FullExpert) and expert.origin is not None:  # PEFT has merged it
        key.append(version("peft"))
    return folder / hashlib.sha256(" ".join(key).encode()).hexdigest()


def _partial(place: Path) -> Path:
    return place.with_name(f"{place.name}.partial")


def _missing(base: Base, expert: Expert, rank: Rank, folder: Path) -> int:
    """Bytes that factoring an expert will still write."""
    place = _place(base, expert, rank, folder)
    if FactorStore(place).intact():
        return 0
    done = written(_partial(place))
    return sum(
        _size(slot, rank)
        for slot in base.slots
        if slot.name not in done and expert.form(slot) == "dense"
    )


def _factor_all(
    slots: tuple[Slot, ...],
    expert: Expert,
    rank: Rank,
    writer: FactorWriter,
    progress: Callable[[str], None],
) -> None:
    work = [(slot, form) for slot in slots if (form := expert.form(slot)) is not None]
    costs = [
        cost(slot.shape, rank) if form == "dense" and slot.is_matrix else 1.0 for slot, form in work
    ]
    size = sum(_size(slot, rank) for slot, form in work if form == "dense")
    count = sum(slot.is_matrix for slot, _ in work)
    progress(
        f"factoring {expert.path.name}: {count} matrices, rank {rank}"
        + (f", {size_text(size)}, {sum(costs) / 1e12:.2g} Tflop" if size else "")
    )
    clock = _Clock(sum(costs), progress)
    changed = bool(writer.done_ranks)
    for (slot, _), operations in zip(work, costs, strict=True):
        if slot.name not in writer.done:
            changed |= _add(slot, expert, rank, writer)
        clock.passed(operations, slot.name)
    if not changed:
        raise UserError("is identical to the base", where=str(expert.path), remedy="leave it out")
    writer.finish()


def _add(slot: Slot, expert: Expert, rank: Rank, writer: FactorWriter) -> bool:
    """Factor one slot; return whether the expert differs from the base in it."""
    delta = streamed(expert, slot)
    if delta is None:
        return False
    if not slot.is_matrix:
        return isinstance(delta, torch.Tensor) and bool(delta.any())
    # Factors are exact as they are, and cost nothing to keep.
    wanted = "full" if isinstance(delta, LowRank) else rank
    up, down, energy, kept = factor_by_rows(delta, wanted)
    if not energy > 0:
        writer.leave(slot.name)
        return False
    writer.add(slot.name, up, down, kept / energy)
    return True


class _Clock:
    """Says every half a minute how far a build is."""

    def __init__(self, total: float, say: Callable[[str], None]) -> None:
        self._total, self._say, self._done = total, say, 0.0
        self._start = self._last = time.monotonic()

    def passed(self, cost: float, name: str) -> None:
        self._done += cost
        now = time.monotonic()
        if now - self._last >= 30 and self._done < self._total:
            self._last = now
            left = (now - self._start) * (self._total - self._done) / self._done
            share = self._done / self._total
            self._say(f"{share:.0%} factored ({name}), about {left / 60:.0f} min left")


def _size(slot: Slot, rank: Rank) -> int:
    if not slot.is_matrix:
        return 0
    kept = min(slot.shape) if rank == "full" else min(rank, *slot.shape)
    return 4 * kept * sum(slot.shape)
