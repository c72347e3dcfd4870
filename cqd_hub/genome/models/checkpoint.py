"""Reading a model folder: config, safetensors headers, tensors. No pickle is ever opened."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from cqd_hub.errors import UserError
from cqd_hub.files import sha256_of

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class TensorHeader(NamedTuple):
    """Where one tensor lies and what it is, from the safetensors header alone."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Checkpoint:
    """A local model or adapter folder holding safetensors.

    Args:
        path: The folder.
        stem: ``"model"`` for a model, ``"adapter_model"`` for a PEFT adapter.
    """

    path: Path
    stem: str = "model"

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json`` (``adapter_config.json`` for an adapter)."""
        name = "config.json" if self.stem == "model" else "adapter_config.json"
        return read_json(self.path / name)

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files, in name order.

        Raises:
            UserError: There are none, only pickles, or a shard that the index names is missing.
        """
        if not self.path.is_dir():
            raise UserError("no such model folder", where=str(self.path), remedy="check the path")
        single = self.path / f"{self.stem}.safetensors"
        if single.exists():  # transformers, too, reads no shards beside it
            return (single,)
        if self._index.exists():
            names = sorted(set(self._weight_map.values()))
            missing = [name for name in names if not (self.path / name).exists()]
            if missing:
                raise UserError(
                    f"shard {missing[0]} is missing ({len(missing)} of {len(names)})",
                    where=str(self.path),
                    remedy="download it again",
                )
            return tuple(self.path / name for name in names)
        pickles = [file.name for pattern in _PICKLES for file in self.path.glob(pattern)]
        if pickles:
            raise UserError(
                f"holds only pickled weights ({pickles[0]}), which can run code when opened",
                where=str(self.path),
                remedy="convert it to safetensors on a machine you trust: "
                "model.save_pretrained(..., safe_serialization=True)",
            )
        raise UserError(f"holds no {single.name}", where=str(self.path), remedy="check the path")

    @property
    def _index(self) -> Path:
        return self.path / f"{self.stem}.safetensors.index.json"

    @cached_property
    def _weight_map(self) -> dict[str, str]:
        """Tensor → shard. Shards lie in this very folder."""
        names = read_json(self._index).get("weight_map")
        plain = isinstance(names, dict) and all(
            isinstance(name, str) and Path(name).name == name for name in names.values()
        )
        if not plain or not names:
            raise UserError(
                "does not map tensors to files of its folder",
                where=str(self._index),
                remedy="download or save the model again",
            )
        return names

    @cached_property
    def headers(self) -> dict[str, TensorHeader]:
        """Every tensor's place, shape and dtype, by name. Reads headers only."""
        found: dict[str, TensorHeader] = {}
        for file in self.files:
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 (not a mapping)
                        part = opened.get_slice(name)
                        found[name] = TensorHeader(file, tuple(part.get_shape()), part.get_dtype())
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"is damaged or cut short: {error}",
                    where=str(file),
                    remedy="download or save it again",
                ) from None
        if len(self.files) > 1 and (lost := sorted(set(self._weight_map) - set(found))):
            raise UserError(
                f"no shard holds {lost[0]} ({len(lost)} lost)",
                where=str(self._index),
                remedy="download or save the model again",
            )
        return found

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the weights' file hashes and, for an adapter, its config."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(sha256_of(file).encode())
        if self.stem != "model":
            digest.update(json.dumps(self.config, sort_keys=True).encode())
        return digest.hexdigest()

    def tensor(
        self, name: str, *, index: int | None = None, rows: slice | None = None
    ) -> torch.Tensor:
        """Read one tensor, or only number *index* of a stack, in the dtype it was saved in.

        Of that only *rows*, if given. What is read stays mapped for as long as the result lives.
        """
        with safe_open(self.headers[name].file, framework="pt") as opened:
            if index is None:
                return opened.get_tensor(name) if rows is None else opened.get_slice(name)[rows]
            part = opened.get_slice(name)
            return part[index] if rows is None else part[index, rows]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: Missing file or not JSON.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path.name} is missing", where=str(path.parent), remedy="is this a model folder?"
        ) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"is not JSON: {error}", where=str(path)) from None
    if not isinstance(value, dict):
        raise UserError("is no JSON object", where=str(path), remedy="download it again")
    return value
