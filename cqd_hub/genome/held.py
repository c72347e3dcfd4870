"""Where the tensors lie that individuals are summed from: on the device, or on their way to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch

from cqd_hub.genome.host import free_host_memory

Weights = Literal["device", "host"]
_SPARED = 4 << 30  # bytes of the host's memory that are left to others
_ALIGNED = 512  # bytes, as CUDA's allocator does: which kernel multiplies depends on it


class Key(NamedTuple):
    """Names a tensor: what it is, of which slot, and of which expert or in which dtype."""

    kind: str
    slot: int
    of: int | torch.dtype | None = None


class Step(NamedTuple):
    """Some rows of one slot.

    Args:
        rows: Which.
        sliced: The tensors whose rows are needed.
        whole: The tensors that are needed whole, by all steps of their slot.
        work: What is to be done with them.
    """

    rows: slice
    sliced: tuple[Key, ...]
    whole: tuple[Key, ...]
    work: Any


class Taken(NamedTuple):
    """A step, and its tensors on the device until the next one is taken."""

    step: Step
    sliced: Sequence[torch.Tensor]
    whole: Sequence[torch.Tensor]


class Held:
    """Tensors kept on the device that sums them.

    Attributes:
        at: Where what is kept lies.
    """

    streams = False

    def __init__(self, device: torch.device) -> None:
        self.at = self._device = device
        self._kept: dict[Key, torch.Tensor] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def __getitem__(self, key: Key) -> torch.Tensor:
        return self._kept[key]

    def keep(self, key: Key, tensor: torch.Tensor) -> None:
        """Have a tensor, from anywhere, for all steps to come."""
        self._kept[key] = tensor.to(self.at)

    def forget_all_but(self, kind: str) -> None:
        """Let go of the other kinds."""
        self._kept = {key: tensor for key, tensor in self._kept.items() if key.kind == kind}

    def take(self, step: Step) -> Taken:
        """One step's tensors."""
        kept, rows = self._kept, step.rows
        return Taken(
            step, [kept[key][rows] for key in step.sliced], [kept[key] for key in step.whole]
        )

    def along(self, steps: Iterable[Step]) -> Iterator[Taken]:
        """Steps in turn, each to be done with when the next is asked for."""
        return map(self.take, steps)


class Streamed(Held):
    """Tensors kept in the host's memory and copied while the step before is summed.

    For CUDA they are pinned, as far as the system allows, and copied on a stream of their own. One
    `along` at a time. What it takes of the device is two steps' tensors.
    """

    streams = True

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.at = torch.device("cpu")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pins = self._stream is not None
        self._sliced = (_Place(device), _Place(device))
        self._whole = (_Place(device), _Place(device))

    @property
    def buffers(self) -> int:
        """Bytes taken of the device."""
        return sum(place.size for place in (*self._sliced, *self._whole))

    def keep(self, key: Key, tensor: torch.Tensor) -> None:
        """See `Held.keep`; in the order of its rows, which are copied in one piece."""
        tensor = tensor.to(self.at).contiguous()
        if self._pins and tensor.nbytes + _SPARED <= free_host_memory():
            try:
                tensor = tensor.pin_memory()
            except RuntimeError:  # no more may be locked: the rest is copied as it lies
                self._pins = False
        self._kept[key] = tensor

    def take(self, step: Step) -> Taken:
        """See `Held.take`; copied at once."""
        _, sliced, whole = super().take(step)
        return Taken(
            step,
            [tensor.to(self._device) for tensor in sliced],
            [tensor.to(self._device) for tensor in whole],
        )

    def along(self, steps: Iterable[Step]) -> Iterator[Taken]:
        """See `Held.along`."""
        if self._stream is not None:  # whatever became of the steps before
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        sent = None
        for step in steps:
            following = self._send(step, sent)
            if sent is not None:
                yield self._received(sent)
                self._done(sent)
            sent = following
        if sent is not None:
            yield self._received(sent)
            self._done(sent)

    def _send(self, step: Step, last: _Sent | None) -> _Sent:
        """Begin to copy a step's tensors to where the *last* one's are not."""
        place = _other(self._sliced, last and last.sliced)
        _, sliced, whole = super().take(step)
        sliced = self._copy(sliced, place)
        if last is not None and last.taken.step.whole == step.whole:
            return _Sent(Taken(step, sliced, last.taken.whole), place, last.whole)
        shared = _other(self._whole, last and last.whole)
        return _Sent(Taken(step, sliced, self._copy(whole, shared)), place, shared)

    def _copy(self, tensors: Sequence[torch.Tensor], place: _Place) -> list[torch.Tensor]:
        if self._stream is None:
            return place.fill(tensors)
        if place.free is not None:
            self._stream.wait_event(place.free)
        with torch.cuda.stream(self._stream):
            found = place.fill(tensors)
            place.filled = self._stream.record_event()
        return found

    def _received(self, sent: _Sent) -> Taken:
        if self._stream is not None:
            for place in (sent.sliced, sent.whole):
                torch.cuda.current_stream(self._device).wait_event(place.filled)
        return sent.taken

    def _done(self, sent: _Sent) -> None:
        if self._stream is not None:
            for place in (sent.sliced, sent.whole):
                place.free = torch.cuda.current_stream(self._device).record_event()


class _Place:
    """Memory of the device that holds one step's tensors after another's."""

    def __init__(self, device: torch.device) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)
        self.filled: Any = None
        self.free: Any = None

    @property
    def size(self) -> int:
        return self._memory.numel()

    def fill(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        starts, size = [], 0
        for tensor in tensors:
            starts.append(size)
            size += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
        if size > self.size:
            self._memory = torch.empty(size, dtype=torch.uint8, device=self._memory.device)
        found = []
        for start, tensor in zip(starts, tensors, strict=True):
            part = self._memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            found.append(part.copy_(tensor, non_blocking=True))
        return found


class _Sent(NamedTuple):
    taken: Taken
    sliced: _Place
    whole: _Place


def _other(places: tuple[_Place, _Place], place: _Place | None) -> _Place:
    return places[1] if place is places[0] else places[0]


def held(device: torch.device, weights: Weights) -> Held:
    """Keep tensors for a device there or in the host's memory, which for a CPU are one."""
    return Streamed(device) if weights == "host" and device.type != "cpu" else Held(device)
