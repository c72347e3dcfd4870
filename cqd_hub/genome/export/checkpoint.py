"""An individual as an ordinary model folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from cqd_hub.errors import RunError, UserError
from cqd_hub.genome.basis import Basis
from cqd_hub.genome.export.output import output_folder
from cqd_hub.genome.finite import is_finite, overflow
from cqd_hub.genome.genome import Genome
from cqd_hub.genome.layout import Slot
from cqd_hub.genome.materialise import Materialiser
from cqd_hub.genome.models.checkpoint import Checkpoint, read_json
from cqd_hub.genome.models.experts import Base
from cqd_hub.genome.stream import CODES, Add, Extent, extents, tensor_file

Dtype = Literal["bfloat16", "float16", "float32"]
Weights = Callable[[int, torch.dtype], torch.Tensor]  # slot number, dtype → its weights
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
_CHAT = ("chat_template*", "additional_chat_templates/*")
# What else a model folder holds beside weights and config.
_ABOUT = ("generation_config.json", "LICENSE*", "NOTICE*")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
_DTYPES = {code: dtype for dtype, code in CODES.items()}


class Part(NamedTuple):
    """One stored tensor of an export: put together from *slots*, or the base's own as it lies.

    Args:
        name: The tensor's.
        shape: Its shape.
        slots: Their numbers; none where *dtype* is the place of the base's own.
        dtype: What the slots are written in.
    """

    name: str
    shape: tuple[int, ...]
    slots: tuple[int, ...]
    dtype: torch.dtype | Extent

    @property
    def bytes(self) -> int:
        """Its size on disk."""
        if isinstance(self.dtype, Extent):
            return self.dtype.bytes
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return self.bytes // max(1, torch.Size(self.shape).numel())


def export_checkpoint(
    genome: Genome,
    materialiser: Materialiser,
    out: Path,
    *,
    dtype: Dtype | None = None,
    shard_size: str = "5GB",
) -> int:
    """Write the individual as a folder that ``from_pretrained`` loads, tokenizer included.

    It holds exactly the tensors that the base stores, under the names it stores them. One tensor is
    in memory at a time. A killed export goes on where it was when the same one is asked for again.

    Args:
        out: A folder that does not exist yet.
        dtype: Of every weight; each as in the base unless given.
        shard_size: Largest safetensors file, in KB, MB or GB.

    Returns:
        Bytes of weights.

    Raises:
        UserError: *out* exists or is not writable; *shard_size* is not a size; a weight is beyond
            what *dtype* can hold.
        RunError: Not enough space. Nothing is left behind.
    """
    model = ModelFiles(materialiser.basis, dtype=dtype, shard_size=shard_size)
    key = {"form": "checkpoint", "genome": genome.hash, **model.key}
    with output_folder(out, needed=model.bytes, key=key) as folder:
        model.write(folder, individual(genome, materialiser))
    return model.bytes


def individual(genome: Genome, materialiser: Materialiser) -> Weights:
    """What `ModelFiles` writes for an individual; nothing is kept from slot to slot."""

    def weight(slot: int, dtype: torch.dtype) -> torch.Tensor:
        made = materialiser.weight(genome, slot, dtype=dtype)
        materialiser.release()
        return made

    return weight


class ModelFiles:
    """The files of a checkpoint with the base's tensors, before any of them is written.

    Args:
        basis: Names the tensors.
        dtype: Of every weight; each as in the base unless given.
        shard_size: Largest safetensors file, in KB, MB or GB.

    Raises:
        UserError: *shard_size* is not a size.
    """

    def __init__(
        self,
        basis: Basis,
        *,
        dtype: Dtype | None = None,
        shard_size: str = "5GB",
    ) -> None:
        self._basis, self._dtype, self._shard_size = basis, dtype, shard_size
        self.parts = stored_parts(basis, dtype)
        self._shards = _shards(self.parts, _bytes(shard_size))
        self.bytes = sum(part.bytes for part in self.parts)

    @property
    def key(self) -> dict[str, object]:
        """What decides the bytes of every file, beside the individual."""
        return {
            "basis": self._basis.hash,
            "dtype": self._dtype,
            "shard_size": self._shard_size,
        }

    def write(self, folder: Path, weight: Weights) -> None:
        """Write them into *folder*; a shard that is there already is complete and stays.

        Args:
            folder: Exists.
            weight: Makes one slot's weights.

        Raises:
            UserError: A weight is beyond what the dtype can hold.
            RunError: The tensors written are not those the base stores.
        """
        places: dict[str, str] = {}
        for number, parts in enumerate(self._shards, 1):
            file = "model.safetensors"
            if len(self._shards) > 1:
                file = f"model-{number:05d}-of-{len(self._shards):05d}.safetensors"
            if not (folder / file).exists():
                with tensor_file(folder / file, [part.name for part in parts]) as add:
                    for part in sorted(parts, key=lambda part: -part.itemsize):
                        self._add(add, weight, part)
            places |= dict.fromkeys((part.name for part in parts), file)
        if len(self._shards) > 1:
            index = {"metadata": {"total_size": self.bytes}, "weight_map": places}
            _write_json(folder / "model.safetensors.index.json", index)
        base = self._basis.base
        config = base.checkpoint.config
        if self._dtype:
            config = _with_dtype(config, self._dtype)
        _write_json(folder / "config.json", _with_rows(config, *_vocabulary_rows(base)))
        copy_companions(base, folder)
        self._compare(folder)

    def _add(self, add: Add, weight: Weights, part: Part) -> None:
        if isinstance(part.dtype, Extent):
            add(part.name, part.dtype)
            return
        out = torch.empty(part.shape, dtype=part.dtype)
        stack = out if _stacked(self._basis, part) else out[None]
        for index, matrix in zip(part.slots, stack, strict=True):
            matrix.copy_(weight(index, part.dtype).reshape(matrix.shape))
        if not is_finite(out):
            raise overflow(part.name, part.dtype)
        add(part.name, out)

    def _compare(self, folder: Path) -> None:
        base = self._basis.base.checkpoint.headers
        written = Checkpoint(folder).headers
        wanted = {part.name: part.shape for part in self.parts}
        if different := sorted(base.keys() ^ written.keys()) or sorted(
            name for name, header in written.items() if header.shape != wanted[name]
        ):
            raise RunError(
                f"{different[0]} does not come out as the base stores it ({len(different)} differ)",
                where=str(folder),
                remedy="please report this model's architecture",
            )


def stored_parts(basis: Basis, dtype: Dtype | None = None) -> list[Part]:
    """Every tensor of a checkpoint, by name: slots put together, tied copies, what is no weight."""
    headers = basis.base.checkpoint.headers
    places = {
        name: extent
        for file in basis.base.checkpoint.files
        for name, extent in extents(file).items()
    }
    slots: dict[str, list[int]] = {}
    for index, slot in enumerate(basis.layout.slots):
        slots.setdefault(slot.tensor, []).append(index)
    for alias, source in basis.base.inventory.aliases.items():
        slots[alias] = slots[source]
    parts = []
    for name, header in sorted(headers.items()):
        members = sorted(slots.get(name, []), key=lambda i: basis.layout.slots[i].index or 0)
        if not members:
            parts.append(Part(name, header.shape, (), places[name]))
            continue
        kind = getattr(torch, dtype) if dtype else _DTYPES[header.dtype]
        shape = _shape(basis.layout.slots[members[0]], header.shape)
        parts.append(Part(name, shape, tuple(members), kind))
    return parts


def copy_companions(base: Base, folder: Path) -> None:
    """Copy tokenizer, chat template, generation config and licence into an individual's folder.

    The tokenizer is the one that knows every token; if it has no chat template, the base's is used.
    """
    _copy(base.checkpoint.path, folder, _ABOUT)
    _copy(base.tokenizer, folder, (*_TOKENIZER, *_CHAT))
    settings = folder / "tokenizer_config.json"
    if not (settings.exists() and "chat_template" in read_json(settings)) and not any(
        any(folder.glob(pattern)) for pattern in _CHAT
    ):
        _copy(base.checkpoint.path, folder, _CHAT)


def _copy(source: Path, target: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for file in source.glob(pattern):
            if file.is_file():
                place = target / file.relative_to(source)
                place.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, place)


def _stacked(basis: Basis, part: Part) -> bool:
    return basis.layout.slots[part.slots[0]].index is not None


def _shape(slot: Slot, stored: tuple[int, ...]) -> tuple[int, ...]:
    """As stored, with the rows of a vocabulary that experts have made longer."""
    whole = slot.index is not None or torch.Size(slot.shape).numel() == torch.Size(stored).numel()
    return stored if whole else (slot.shape[0], *stored[1:])


def _vocabulary_rows(base: Base) -> tuple[set[int], int]:
    """Rows of the base's own vocabulary, and how many they have become."""
    if base.vocabulary is None:
        return set(), 0
    names = {slot.tensor for slot in base.vocabulary_slots}
    return {base.checkpoint.headers[name].shape[0] for name in names}, base.vocabulary.rows


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config, and those inside it that name one, with another dtype."""
    changed = {
        key: _with_dtype(value, dtype) if _names_dtype(value) else value
        for key, value in config.items()
    }
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    return changed | dict.fromkeys(keys, dtype)


def _names_dtype(value: object) -> bool:
    return isinstance(value, dict) and ("dtype" in value or "torch_dtype" in value)


def _with_rows(config: dict[str, Any], own: Collection[int], rows: int) -> dict[str, Any]:
    """The config, and those inside it, with another number wherever they give the base's *own*.

    A codec's or an image tokenizer's vocabulary beside it is another.
    """
    return {
        key: rows
        if key == "vocab_size" and value in own
        else _with_rows(value, own, rows)
        if isinstance(value, dict)
        else value
        for key, value in config.items()
    }


def _shards(parts: Sequence[Part], limit: int) -> list[list[Part]]:
    shards: list[list[Part]] = [[]]
    used = 0
    for part in parts:
        if shards[-1] and used + part.bytes > limit:
            shards.append([])
            used = 0
        shards[-1].append(part)
        used += part.bytes
    return shards


def _bytes(size: str) -> int:
    number, unit = size[:-2], size[-2:].upper()
    if unit not in _UNITS or not number.strip().isdecimal() or int(number) == 0:
        raise UserError(f"{size!r} is not a size", where="shard_size", remedy="write e.g. 5GB")
    return int(number) * _UNITS[unit]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
