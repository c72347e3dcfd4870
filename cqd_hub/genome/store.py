"""Factors on disk: written slot by slot in shards, read back one slot at a time.

A build that is killed carries on from its last whole shard.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cqd_hub.errors import RunError, UserError
from cqd_hub.files import write_atomic

_SHARD = 1 << 28  # bytes held in memory before they are written


class Factors(NamedTuple):
    """One expert in one matrix slot: τ ≈ up @ down.

    ``up`` is U·diag(S) [rows, r], ``down`` is Vᵀ [r, columns], fp32, singular values descending.
    """

    up: torch.Tensor
    down: torch.Tensor


def cache_folder() -> Path:
    """Where bases are kept: ``$CQD_HUB_CACHE``, else ``cqd-hub`` in the user's cache folder."""
    if folder := os.environ.get("CQD_HUB_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cqd-hub"


@dataclass(frozen=True)
class FactorStore(Mapping[str, Factors]):
    """One expert's factors by slot name, read from disk when asked for.

    Args:
        folder: Made by `FactorWriter`.
    """

    folder: Path

    @cached_property
    def _index(self) -> dict[str, Any]:
        return json.loads((self.folder / "index.json").read_text(encoding="utf-8"))

    @property
    def hash(self) -> str:
        """SHA-256 over names and factors."""
        return self._index["hash"]

    @cached_property
    def ranks(self) -> dict[str, int]:
        """Slot name → rank."""
        return {name: entry["rank"] for name, entry in self._index["slots"].items()}

    @cached_property
    def retained(self) -> dict[str, float]:
        """Slot name → share of ‖τ‖² that the factors hold."""
        return {name: entry["retained"] for name, entry in self._index["slots"].items()}

    def intact(self) -> bool:
        """Whether the index can be read and every shard has the size it was written with."""
        try:
            return all(
                (self.folder / name).stat().st_size == size
                for name, size in self._index["files"].items()
            )
        except (OSError, ValueError, KeyError):
            return False

    def __getitem__(self, slot: str) -> Factors:
        entry = self._index["slots"][slot]
        file = self.folder / entry["file"]
        with safe_open(file, framework="pt") as opened:
            found = Factors(opened.get_tensor(f"up:{slot}"), opened.get_tensor(f"down:{slot}"))
        if _digest(found) != entry["hash"]:
            raise RunError(
                f"its factors of {slot} are damaged",
                where=str(file),
                remedy=f"delete {self.folder}; it will be made again",
            )
        return found

    def __contains__(self, slot: object) -> bool:
        return slot in self._index["slots"]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index["slots"])

    def __len__(self) -> int:
        return len(self._index["slots"])


class FactorWriter:
    """Collects factors into shards of *folder* and ends with an index.

    Args:
        folder: May hold the shards of a build that was interrupted.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tensors: dict[str, torch.Tensor] = {}
        self._slots: dict[str, dict[str, Any]] = {}
        self._pending: dict[str, dict[str, Any]] = {}
        self._files: dict[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for record in sorted(folder.glob("factors-*.json")):
            entry = json.loads(record.read_text(encoding="utf-8"))
            self._slots |= entry["slots"]
            self._files[entry["file"]] = entry["size"]

    @property
    def folder(self) -> Path:
        """Where the shards are."""
        return self._folder

    @property
    def done_ranks(self) -> list[int]:
        """Ranks of the slots that are done and hold something."""
        return [entry["rank"] for entry in self._slots.values() if entry["rank"]]

    @property
    def done(self) -> set[str]:
        """Slots that need not be added, because an interrupted build has written them."""
        return set(self._slots)

    def add(self, slot: str, factors: Factors | None, retained: float) -> None:
        """Add one slot, or that there is nothing in it (``None``)."""
        entry: dict[str, Any] = {"rank": 0, "retained": retained, "hash": ""}
        if factors is not None:
            factors = Factors(*(tensor.contiguous() for tensor in factors))
            self._tensors |= {f"up:{slot}": factors.up, f"down:{slot}": factors.down}
            entry |= {"rank": factors.up.shape[1], "hash": _digest(factors)}
        self._pending[slot] = entry
        if sum(tensor.nbytes for tensor in self._tensors.values()) >= _SHARD:
            self._flush()

    def finish(self) -> FactorStore:
        """Write what is left and the index."""
        self._flush()
        slots = {name: entry for name, entry in sorted(self._slots.items()) if entry["rank"]}
        digest = hashlib.sha256()
        for name, entry in slots.items():
            digest.update(f"{name} {entry['rank']} {entry['hash']}".encode())
        index = {"hash": digest.hexdigest(), "files": self._files, "slots": slots}
        write_atomic(self._folder / "index.json", json.dumps(index))
        for record in self._folder.glob("factors-*.json"):
            record.unlink()
        return FactorStore(self._folder)

    def _flush(self) -> None:
        if not self._pending:
            return
        name = f"factors-{len(self._files) + 1:05d}.safetensors"
        path = self._folder / name
        try:
            save_file(self._tensors, path)
        except Exception as error:  # safetensors has its own error for a full disk
            raise RunError(
                f"cannot be written: {error}",
                where=str(path),
                remedy="free some space, or set CQD_HUB_CACHE to a folder on another disk",
            ) from None
        for entry in self._pending.values():
            entry["file"] = name
        size = path.stat().st_size
        record = {"file": name, "size": size, "slots": self._pending}
        write_atomic(path.with_suffix(".json"), json.dumps(record))
        self._slots |= self._pending
        self._files[name] = size
        self._tensors, self._pending = {}, {}


def _digest(factors: Factors) -> str:
    digest = hashlib.sha256()
    for tensor in factors:
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder's name alone among processes; others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def check_room(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk of *folder* cannot hold.

    Raises:
        UserError: Says how much is needed and how much is free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the basis needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
            where=str(folder),
            remedy="set a smaller genome.rank, free some space, or set CQD_HUB_CACHE to another "
            "disk",
        )
