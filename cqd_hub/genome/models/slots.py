"""A stored model seen as slots: which tensors there are, and one slot's data at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from cqd_hub.genome.layout import Kind, Slot
from cqd_hub.genome.models.architecture import Architecture, Place
from cqd_hub.genome.models.checkpoint import Checkpoint


class Inventory(NamedTuple):
    """What a base's stored tensors are.

    Args:
        slots: What is merged, sorted by name.
        aliases: Stored copies of tied weights → the tensor they repeat.
        carried: Tensors that are no weights (masks, counters); exports copy them.
    """

    slots: tuple[Slot, ...]
    aliases: dict[str, str]
    carried: tuple[str, ...]

    @property
    def names(self) -> set[str]:
        """Stored names of the slots' tensors."""
        return {slot.tensor for slot in self.slots}


@dataclass(frozen=True)
class Stored:
    """The tensors of one model folder, by the names it stores them under."""

    checkpoint: Checkpoint
    architecture: Architecture | None

    @cached_property
    def places(self) -> dict[str, Place]:
        """Stored name → where transformers puts it; empty for an unknown architecture."""
        names = self.checkpoint.headers
        return self.architecture.places(names) if self.architecture else {}

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Stored copies of tied weights → the stored tensor they repeat.

        A copy that differs from its source is none: transformers unties such weights too.
        """
        found = {}
        for name in self.checkpoint.headers:
            source = self._source(name)
            if source is not None and self._equal(name, source):
                found[name] = source
        return found

    def inventory(self) -> Inventory:
        """Sort the stored tensors into slots, aliases and what is only carried along."""
        slots: list[Slot] = []
        carried = []
        for name in sorted(set(self.checkpoint.headers) - set(self.aliases)):
            if self._is_weight(name):
                slots += self._slots(name)
            else:
                carried.append(name)
        return Inventory(tuple(slots), self.aliases, tuple(carried))

    def read(self, slot: Slot, rows: slice | None = None) -> torch.Tensor:
        """One slot, or *rows* of it, in the dtype it was saved in.

        Its rows are the folder's own: a vocabulary may be longer or shorter than ``slot.shape``.
        """
        tensor = self.checkpoint.tensor(slot.tensor, index=slot.index, rows=rows)
        return tensor.reshape(len(tensor), -1) if slot.is_matrix else tensor.reshape(-1)

    def _is_weight(self, name: str) -> bool:
        header = self.checkpoint.headers[name]
        if not header.dtype.startswith(("F", "BF")) or 0 in header.shape:
            return False
        ignored = self.architecture is not None and self.architecture.ignores(name)
        return name in self.places or not ignored

    def _slots(self, name: str) -> Iterator[Slot]:
        shape = self.checkpoint.headers[name].shape
        kind = self._kind(name, shape)
        if len(shape) == 2 and name.endswith("bias"):  # of a stack of matrices
            for index in range(shape[0]):
                yield Slot(f"{name}[{index}]", shape[1:], "vector", name, index)
        elif kind == "vector":
            yield Slot(name, (torch.Size(shape).numel(),), kind, name)
        elif kind == "convolution" or len(shape) == 2:
            yield Slot(name, (shape[0], torch.Size(shape[1:]).numel()), kind, name)
        else:
            for index in range(shape[0]):
                yield Slot(f"{name}[{index}]", shape[1:], kind, name, index)

    def _kind(self, name: str, shape: tuple[int, ...]) -> Kind:
        if len(shape) < 2:
            return "vector"
        kind: Kind = "matrix"
        if self.architecture is not None and name in self.places:
            kind = self.architecture.kind(self.places[name])
        # Beyond three dimensions, or without a matrix in the last two, there is nothing to stack.
        return "convolution" if len(shape) > 3 or (len(shape) == 3 and 1 in shape[1:]) else kind

    def _source(self, name: str) -> str | None:
        if self.architecture is not None:
            source = self.architecture.tied_to(name)
            stored = (other for other, place in self.places.items() if place.parameter == source)
            return next((other for other in stored if other != name), None) if source else None
        tied = self.checkpoint.config.get("tie_word_embeddings") and name == "lm_head.weight"
        return "model.embed_tokens.weight" if tied else None

    def _equal(self, name: str, source: str) -> bool:
        if source not in self.checkpoint.headers:
            return False
        return torch.equal(self.checkpoint.tensor(name), self.checkpoint.tensor(source))


class Renamed:
    """Reads a base's slots from a folder that stores the same model under other names.

    Args:
        base: Names the slots.
        other: The folder; every parameter of the base's slots must lie in it.
    """

    def __init__(self, base: Stored, other: Stored) -> None:
        self._base, self._other = base, other
        self._pieces: dict[str, list[tuple[str, Place]]] = {}
        for name, place in other.places.items():
            if name not in other.aliases:
                self._pieces.setdefault(place.parameter, []).append((name, place))
        self._last: tuple[str, torch.Tensor] | None = None

    def missing(self, slots: Iterable[Slot]) -> list[str]:
        """Names of the slots that the folder does not hold, or only in part."""
        return [slot.name for slot in slots if not self._holds(slot.tensor)]

    def read(self, slot: Slot, rows: slice | None = None) -> torch.Tensor:
        """See `Stored.read`; whatever name the folder stores the slot under."""
        if slot.tensor in self._other.checkpoint.headers:
            return self._other.read(slot, rows)
        whole = self._renamed(slot)
        return whole if rows is None else whole[rows]

    def _renamed(self, slot: Slot) -> torch.Tensor:
        place = self._base.places[slot.tensor]
        pieces = self._pieces[place.parameter]
        if len(pieces) == 1 and pieces[0][1] == place:  # one to one: rows may differ in number
            tensor = self._other.checkpoint.tensor(pieces[0][0])
        else:
            tensor = place.view(self._parameter(place.parameter))
        if slot.index is not None:
            tensor = tensor[slot.index]
        return tensor.reshape(len(tensor), -1) if slot.is_matrix else tensor.reshape(-1)

    def _holds(self, name: str) -> bool:
        if name in self._other.checkpoint.headers:
            return True
        place = self._base.places.get(name)
        if place is None or self._base.architecture is None:
            return False
        pieces = self._pieces.get(place.parameter, [])
        held = sum(torch.Size(piece.size).numel() for _, piece in pieces)
        return held == self._base.architecture.parameters[place.parameter].numel()

    def _parameter(self, name: str) -> torch.Tensor:
        """A parameter put together; the last one is kept, for it holds the next slots as well."""
        if self._last is None or self._last[0] != name:
            pieces = [(self._other.checkpoint.tensor(n), place) for n, place in self._pieces[name]]
            whole = pieces[0][0]
            if len(pieces) > 1:
                assert self._base.architecture is not None  # it has places
                shape = self._base.architecture.parameters[name].shape
                whole = torch.empty(shape, dtype=whole.dtype)
                for tensor, place in pieces:
                    place.view(whole).copy_(tensor)
            self._last = (name, whole)
        return self._last[1]
