"""Base and experts, slot by slot: an expert's task vector is dense, or two exact factors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch

from cqd_hub.errors import UserError
from cqd_hub.genome.layout import Slot
from cqd_hub.genome.models.checkpoint import Checkpoint
from cqd_hub.genome.models.slots import Inventory, Renamed, Stored
from cqd_hub.genome.models.vocabulary import Vocabulary

Form = Literal["dense", "factors"]
_LARGE = 1 << 24  # elements: 64 MB in fp32


class LowRank(NamedTuple):
    """τ = up @ down with ``up`` [rows, r] and ``down`` [r, columns], fp32."""

    up: torch.Tensor
    down: torch.Tensor


class Difference(NamedTuple):
    """A dense task vector that is computed again, a few rows at a time, whenever it is passed over.

    Args:
        shape: ``[rows, columns]``.
        part: Some rows of it in fp32.
    """

    shape: tuple[int, ...]
    part: Callable[[slice], torch.Tensor]


class Expert(Protocol):
    """A model fine-tuned from the base."""

    @property
    def path(self) -> Path:
        """The folder it was read from."""
        ...

    @property
    def content_hash(self) -> str:
        """Hash of its weights, and of an adapter's config."""
        ...

    def form(self, slot: Slot) -> Form | None:
        """How its task vector comes in *slot*, or None if it does not touch it. Reads headers."""
        ...

    def task_vector(self, slot: Slot) -> LowRank | torch.Tensor | None:
        """Expert minus base, subtracted in fp32.

        Raises:
            UserError: NaN or infinity.
        """
        ...

    def weight(self, slot: Slot) -> torch.Tensor:
        """Its own weights in a dense slot, ``slot.shape``, in the dtype they were saved in."""
        ...

    def rows(self, slot: Slot) -> int | None:
        """How many rows it stores of a vocabulary slot, or None if it stores none."""
        ...

    def stored_rows(self, slot: Slot) -> torch.Tensor:
        """A vocabulary slot with all rows that it stores."""
        ...


@dataclass(frozen=True)
class Base:
    """The common ancestor.

    Args:
        stored: Its folder.
        vocabulary: Rows that experts' added tokens need beyond its own, or None.
    """

    stored: Stored
    vocabulary: Vocabulary | None = None

    @property
    def checkpoint(self) -> Checkpoint:
        """Its folder's files."""
        return self.stored.checkpoint

    @cached_property
    def inventory(self) -> Inventory:
        """Its stored tensors, sorted."""
        return self.stored.inventory()

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """What is merged, by name; the vocabulary as long as the longest."""
        if self.vocabulary is None:
            return self.inventory.slots
        rows = self.vocabulary.rows
        return tuple(
            replace(slot, shape=(rows, *slot.shape[1:]))
            if slot.name in self.vocabulary.slots
            else slot
            for slot in self.inventory.slots
        )

    @property
    def vocabulary_slots(self) -> tuple[Slot, ...]:
        """The slots with one row per token: input embedding and, where it is not tied, head."""
        stored, architecture = self.stored, self.stored.architecture
        if architecture is None:
            return ()
        return tuple(
            slot
            for slot in self.slots
            if slot.tensor in stored.places
            and stored.places[slot.tensor].parameter in architecture.vocabulary
        )

    @cached_property
    def content_hash(self) -> str:
        """Hash of its weights and of the rows they were extended by."""
        own = self.checkpoint.content_hash
        if self.vocabulary is None or not self.vocabulary.donors:
            return own
        return hashlib.sha256(f"{own} {self.vocabulary.content_hash}".encode()).hexdigest()

    @property
    def tokenizer(self) -> Path:
        """The folder whose tokenizer knows every token of base and experts."""
        return self.vocabulary.tokenizer if self.vocabulary else self.checkpoint.path

    def weight(self, slot: Slot) -> torch.Tensor:
        """One slot, ``slot.shape``, in the dtype it was saved in."""
        tensor = self.stored.read(slot)
        if len(tensor) < slot.shape[0] and self.vocabulary is not None:
            return torch.cat([tensor, self.vocabulary.extension(slot, len(tensor)).to(tensor)])
        return tensor

    def slot_of(self, parameter: str) -> Slot | None:
        """The slot that holds all of an in-memory parameter, by its name there or as stored."""
        return self._by_parameter.get(parameter)

    @cached_property
    def _by_parameter(self) -> dict[str, Slot]:
        found = {slot.name: slot for slot in self.slots}
        architecture = self.stored.architecture
        for slot in self.slots:
            place = self.stored.places.get(slot.tensor)
            if place is None or architecture is None or slot.index is not None:
                continue
            if torch.Size(place.size) == architecture.parameters[place.parameter].shape:
                found[place.parameter] = slot
        return found


@dataclass(frozen=True)
class FullExpert:
    """A full fine-tune: a folder with the base's weights.

    Args:
        base: The ancestor.
        stored: Its folder.
        origin: Where it came from, if the folder was made from something else.
        origin_hash: That origin's content hash.
    """

    base: Base
    stored: Stored
    origin: Path | None = None
    origin_hash: str | None = None

    @property
    def path(self) -> Path:
        """The folder it was read from."""
        return self.origin or self.stored.checkpoint.path

    @property
    def content_hash(self) -> str:
        """Hash of its weights."""
        return self.origin_hash or self.stored.checkpoint.content_hash

    def form(self, slot: Slot) -> Form | None:
        """Dense everywhere."""
        return "dense"

    def weight(self, slot: Slot) -> torch.Tensor:
        """Its own slot; rows it lacks are the base's."""
        own = self.reader.read(slot)
        self._check_rows(slot, len(own))
        if len(own) == slot.shape[0]:
            return own
        if len(own) > slot.shape[0]:
            return own[: slot.shape[0]]
        rest = self.base.weight(slot)[len(own) :]
        wide = torch.promote_types(own.dtype, rest.dtype)  # so that the difference there is 0
        return torch.cat([own.to(wide), rest.to(wide)])

    def task_vector(self, slot: Slot) -> torch.Tensor:
        """Expert minus base, subtracted in fp32.

        Raises:
            UserError: It or the base's tensor holds NaN or infinity.
        """
        own, base = self.weight(slot), self.base.weight(slot)
        delta = torch.empty(slot.shape)
        for rows in blocks(slot.shape):  # no more than the result in fp32 at a time
            delta[rows] = self._minus(own[rows], base[rows], slot)
        return delta

    def difference(self, slot: Slot) -> Difference:
        """The same of a matrix, never whole in memory."""
        own_rows, base_rows = len(self.reader.read(slot)), len(self.base.stored.read(slot))
        self._check_rows(slot, own_rows)

        def part(rows: slice) -> torch.Tensor:
            rows = slice(rows.start, min(rows.stop, slot.shape[0]))
            stored = rows.stop <= own_rows
            own = self.reader.read(slot, rows) if stored else self.weight(slot)[rows]
            stored = rows.stop <= base_rows
            base = self.base.stored.read(slot, rows) if stored else self.base.weight(slot)[rows]
            return self._minus(own, base, slot)

        return Difference(slot.shape, part)

    def _minus(self, own: torch.Tensor, base: torch.Tensor, slot: Slot) -> torch.Tensor:
        """Some rows of the difference in fp32."""
        delta = own.float() - base.float()
        if not torch.isfinite(delta.sum()):  # any NaN or infinity shows in the sum
            finite(base, slot.name, self.base.checkpoint.path)
            finite(own, slot.name, self.path)
        return delta

    def rows(self, slot: Slot) -> int | None:
        """How many rows it stores of a vocabulary slot."""
        header = self.stored.checkpoint.headers.get(slot.tensor)
        return header.shape[0] if header else len(self.stored_rows(slot))

    def stored_rows(self, slot: Slot) -> torch.Tensor:
        """A vocabulary slot with all rows that it stores."""
        return self.reader.read(slot)

    def _check_rows(self, slot: Slot, rows: int) -> None:
        if rows != slot.shape[0] and self.base.vocabulary is None:
            raise ValueError(f"{slot.name} has {rows} rows: open it with `open_models`")

    @cached_property
    def reader(self) -> Renamed:
        """Its folder under the base's names."""
        return Renamed(self.base.stored, self.stored)


def streamed(expert: Expert, slot: Slot) -> LowRank | torch.Tensor | Difference | None:
    """An expert's task vector; if it is one of the largest matrices, a few rows at a time."""
    large = slot.is_matrix and torch.Size(slot.shape).numel() > _LARGE
    if large and isinstance(expert, FullExpert):
        return expert.difference(slot)
    return expert.task_vector(slot)


def is_adapter(expert: Expert) -> bool:
    """Whether an expert was given as a PEFT adapter."""
    return (expert.path / "adapter_config.json").exists()


def blocks(shape: tuple[int, ...], elements: int = 1 << 22) -> Iterator[slice]:
    """Slices over the first axis of about *elements* numbers each."""
    step = max(1, elements // max(1, torch.Size(shape[1:]).numel()))
    for start in range(0, shape[0], step):
        yield slice(start, start + step)


def finite(tensor: torch.Tensor, name: str, path: Path) -> torch.Tensor:
    """Return *tensor*, or raise a `UserError` if it holds NaN or infinity."""
    if not torch.isfinite(tensor).all():
        raise UserError(
            f"{name} holds NaN or infinity", where=str(path), remedy="save or train it again"
        )
    return tensor
