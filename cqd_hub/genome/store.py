"""Factors on disk: written slot by slot in shards, read back one slot at a time.

A build that is killed carries on from its last whole shard. Damage is told from what was written:
a shard whose header is lost is made again, numbers that changed are refused when they are read.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from cqd_hub.errors import RunError, UserError
from cqd_hub.files import size_text, write_atomic

_SHARD = 1 << 28  # bytes of a file at which the next one is begun
_HEADER = 1 << 18  # bytes kept at the start of a file to describe its tensors
_ENTRY = 128  # of them, the most that a tensor takes beside its name


class Factors(NamedTuple):
    """One expert in one matrix slot: τ ≈ up @ down.

    ``up`` is U·diag(S) [rows, r], ``down`` is Vᵀ [r, columns], fp32, singular values descending.
    """

    up: torch.Tensor
    down: torch.Tensor


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

    @property
    def files(self) -> dict[str, str]:
        """Slot name → file in the folder."""
        return {name: entry["file"] for name, entry in self._index["slots"].items()}

    @cached_property
    def retained(self) -> dict[str, float]:
        """Slot name → share of ‖τ‖² that the factors hold."""
        return {name: entry["retained"] for name, entry in self._index["slots"].items()}

    def intact(self) -> bool:
        """Whether the index can be read and every shard has its size and all its tensors."""
        try:
            index = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
            return isinstance(index["hash"], str) and _whole(self.folder, index)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def __getitem__(self, slot: str) -> Factors:
        entry = self._index["slots"][slot]
        file = self.folder / entry["file"]
        with suppress(SafetensorError, OSError), safe_open(file, framework="pt") as opened:
            found = Factors(opened.get_tensor(f"up:{slot}"), opened.get_tensor(f"down:{slot}"))
            if _digest(found) == entry["hash"]:
                return found
        raise RunError(
            f"its factors of {slot} are damaged",
            where=str(file),
            remedy=f"delete {self.folder}; it will be made again",
        )

    def __contains__(self, slot: object) -> bool:
        return slot in self._index["slots"]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index["slots"])

    def __len__(self) -> int:
        return len(self._index["slots"])


class FactorWriter:
    """Writes factors into shards of *folder* as they come and ends with an index.

    Args:
        folder: May hold the shards of a build that was interrupted; those that are damaged or not
            finished go.

    Raises:
        UserError: It cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shard: _Shard | None = None
        self._slots: dict[str, dict[str, Any]] = {}
        self._pending: dict[str, dict[str, Any]] = {}
        self._files: dict[str, int] = {}
        with _writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for entry in _records(folder):
                self._slots |= entry["slots"]
                self._files[entry["file"]] = entry["size"]
            for file in folder.glob("factors-*"):
                if file.with_suffix(".safetensors").name not in self._files:
                    file.unlink()

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

    def leave(self, slot: str) -> None:
        """Note that there is nothing in a slot."""
        self._pending[slot] = {"rank": 0, "retained": 1.0, "hash": ""}

    def add(
        self, slot: str, up: Iterable[torch.Tensor], down: torch.Tensor, retained: float
    ) -> None:
        """Add one slot; see `Factors`.

        Args:
            slot: Its name.
            up: In parts, whose rows follow each other.
            down: Whole.
            retained: Share of ‖τ‖² that they hold.

        Raises:
            RunError: The disk is full or failing.
        """
        if self._shard is None:
            self._shard = _Shard(self._folder / self._next)
        digest = hashlib.sha256()
        self._shard.add(f"up:{slot}", up, digest)
        self._shard.add(f"down:{slot}", [down], digest)
        self._pending[slot] = {
            "rank": len(down),
            "retained": retained,
            "hash": digest.hexdigest(),
            "file": self._shard.path.name,
        }
        if self._shard.full:
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

    @property
    def _next(self) -> str:
        """A name that no shard has; those before a damaged one keep theirs."""
        names = (f"factors-{number:05d}.safetensors" for number in count(1))
        return next(name for name in names if name not in self._files)

    def _flush(self) -> None:
        if self._shard is None:
            return
        name, size = self._shard.path.name, self._shard.close()
        record = {"file": name, "size": size, "slots": self._pending}
        write_atomic(self._shard.path.with_suffix(".json"), json.dumps(record))
        self._slots |= self._pending
        self._files[name] = size
        self._shard, self._pending = None, {}


class _Shard:
    """A safetensors file of fp32 matrices, written as their rows come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header: dict[str, dict[str, Any]] = {}
        self._room = _HEADER
        with self._failures():
            self._file = path.open("wb")
            self._file.seek(8 + _HEADER)

    @property
    def full(self) -> bool:
        """Whether another slot should go into another file."""
        return self._file.tell() >= _SHARD or self._room < _HEADER // 2

    def add(self, name: str, parts: Iterable[torch.Tensor], digest: hashlib._Hash) -> None:
        begin, rows, columns = self._file.tell(), 0, 0
        for part in parts:
            data = part.contiguous().numpy().data
            digest.update(data)
            with self._failures():
                self._file.write(data)
            rows, columns = rows + len(part), part.shape[1]
        offsets = [offset - 8 - _HEADER for offset in (begin, self._file.tell())]
        self._header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": offsets}
        self._room -= len(json.dumps(name)) + _ENTRY

    def close(self) -> int:
        """Write the header and see it all on the disk; return the file's size."""
        with self._failures(), self._file as file:
            size = file.tell()
            header = json.dumps(self._header).encode().ljust(_HEADER)
            file.seek(0)
            file.write(len(header).to_bytes(8, "little") + header)
            file.flush()
            os.fsync(file.fileno())
        return size

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"cannot be written: {error.strerror}",
                where=str(self.path),
                remedy="free some space, or set CQD_HUB_CACHE to a folder on another disk",
            ) from None


def _digest(factors: Factors) -> str:
    digest = hashlib.sha256()
    for tensor in factors:
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def written(folder: Path) -> set[str]:
    """Slots that an interrupted build has finished in *folder*, which need not exist."""
    return {slot for entry in _records(folder) for slot in entry["slots"]}


def _records(folder: Path) -> list[dict[str, Any]]:
    """What is recorded of shards, as far as the shards are whole."""
    found = []
    for path in sorted(folder.glob("factors-*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            entry = json.loads(path.read_text(encoding="utf-8"))
            mine = entry["file"] == path.with_suffix(".safetensors").name
            if mine and _whole(
                folder, {"files": {entry["file"]: entry["size"]}, "slots": entry["slots"]}
            ):
                found.append(entry)
    return found


def _whole(folder: Path, index: Mapping[str, Any]) -> bool:
    """Whether *folder* has an index's files, in their sizes, with all of its slots.

    Raises:
        OSError, KeyError, TypeError, AttributeError: It has not, or this is no index.
    """
    of: dict[str, list[str]] = {name: [] for name in index["files"]}
    for name, entry in index["slots"].items():
        known = (int, float, str)
        if not all(map(isinstance, (entry["rank"], entry["retained"], entry["hash"]), known)):
            return False
        if entry["rank"]:
            of[entry["file"]].append(name)
    return all(
        (folder / file).stat().st_size == size and _has(folder / file, of[file])
        for file, size in index["files"].items()
    )


def _has(file: Path, slots: Collection[str]) -> bool:
    try:
        with safe_open(file, framework="pt") as opened:
            return {f"{part}:{slot}" for slot in slots for part in ("up", "down")} <= set(
                opened.keys()
            )
    except SafetensorError:
        return False


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder's name alone among processes; others wait.

    Raises:
        UserError: What holds it cannot be written.
    """
    with _writable(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f"{folder.name}.lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def check_room(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk of *folder* cannot hold.

    Raises:
        UserError: Says how much is needed and how much is free, or *folder* cannot be written.
    """
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the basis needs {size_text(needed)} more, {size_text(free)} are free",
            where=str(folder),
            remedy="set a smaller genome.rank, free some space, or set CQD_HUB_CACHE to another "
            "disk",
        )


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}",
            where=str(folder),
            remedy="set CQD_HUB_CACHE to a folder you may write to",
        ) from None
