"""An individual as an ordinary model folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from cqd_hub.errors import UserError
from cqd_hub.genome.export.output import output_folder
from cqd_hub.genome.genome import Genome
from cqd_hub.genome.materialise import Materialiser

# What a model folder holds beside weights and config.
_COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
)
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def export_checkpoint(
    genome: Genome,
    materialiser: Materialiser,
    out: Path,
    *,
    dtype: Literal["bfloat16", "float16", "float32"] | None = None,
    shard_size: str = "5GB",
) -> int:
    """Write the individual as a folder that ``from_pretrained`` loads, tokenizer included.

    Args:
        out: A folder that does not exist yet.
        dtype: Of every tensor; the base's own unless given.
        shard_size: Largest safetensors file, in KB, MB or GB.

    Returns:
        Bytes of weights written.

    Raises:
        UserError: *out* exists or is not writable; *shard_size* is not a size.
        RunError: Not enough space. Nothing is left behind.
    """
    base = materialiser.basis.base.checkpoint
    wanted = getattr(torch, dtype) if dtype else None
    slots = materialiser.basis.layout.slots
    kinds = [wanted or materialiser.base_dtype(index) for index in range(len(slots))]
    sizes = [
        torch.Size(slot.shape).numel() * kind.itemsize
        for slot, kind in zip(slots, kinds, strict=True)
    ]
    shards = _shards(sizes, _bytes(shard_size))
    with output_folder(out, needed=sum(sizes)) as folder:
        places: dict[str, str] = {}
        for number, members in enumerate(shards, 1):
            file = "model.safetensors"
            if len(shards) > 1:
                file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            tensors = {
                slots[i].name: materialiser.weight(genome, i, dtype=kinds[i]).cpu() for i in members
            }
            save_file(tensors, folder / file, metadata={"format": "pt"})
            places |= dict.fromkeys(tensors, file)
        if len(shards) > 1:
            index = {"metadata": {"total_size": sum(sizes)}, "weight_map": places}
            _write_json(folder / "model.safetensors.index.json", index)
        config = dict(base.config)
        if dtype:
            keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
            config |= dict.fromkeys(keys, dtype)
        _write_json(folder / "config.json", config)
        copy_companions(base.path, folder)
    return sum(sizes)


def copy_companions(source: Path, target: Path) -> None:
    """Copy tokenizer, chat template, generation config and licence of a model folder."""
    for pattern in _COMPANIONS:
        for file in source.glob(pattern):
            if file.is_file():
                place = target / file.relative_to(source)
                place.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, place)


def _shards(sizes: list[int], limit: int) -> list[list[int]]:
    shards: list[list[int]] = [[]]
    used = 0
    for index, size in enumerate(sizes):
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(index)
        used += size
    return shards


def _bytes(size: str) -> int:
    number, unit = size[:-2], size[-2:].upper()
    if unit not in _UNITS or not number.strip().isdecimal() or int(number) == 0:
        raise UserError(f"{size!r} is not a size", where="shard_size", remedy="write e.g. 5GB")
    return int(number) * _UNITS[unit]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
