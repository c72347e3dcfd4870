"""Merged tensors on disk: made once, read slot by slot, cleared under a budget, made again."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from cqd_hub.errors import RunError
from cqd_hub.files import signature
from cqd_hub.genome.finite import is_finite, overflow
from cqd_hub.genome.merge.methods import find_method
from cqd_hub.genome.merge.record import Merge
from cqd_hub.genome.stream import tensor_file
from cqd_hub.randomness import generator

if TYPE_CHECKING:
    from cqd_hub.genome.basis import Basis
    from cqd_hub.genome.genome import Genome

_Part = TypeVar("_Part")


class Source(Protocol):
    """Where a store gets weights from: a `Materialiser`."""

    basis: Basis
    device: torch.device

    def weight(self, genome: Genome, slot: int, *, dtype: torch.dtype) -> torch.Tensor:
        """One slot of an individual."""
        ...

    def base_weight(self, slot: int) -> torch.Tensor:
        """One slot of the base, in its own dtype."""
        ...


class MergeStore:
    """Keeps merges as ``<id>.safetensors``: slot name → tensor in the base's dtype.

    A merge that is not there is made, its parents first, theirs before them, and so on. Only one is
    made at a time, slot by slot: what it takes is a slot of both parents in fp32. A file that
    somebody else has written is compared with its digest before its first use. Methods for all
    threads.

    Args:
        folder: Made when needed.
        budget: Bytes that the files may take; more are kept only while they are in use.
        genome_of: Genome hash → genome, from any thread.
        digest_of: Merge id → digest recorded when it was first made, from any thread; None where
            there is none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        budget: int,
        genome_of: Callable[[str], Genome],
        digest_of: Callable[[str], str | None] = lambda merge: None,
    ) -> None:
        self._folder, self._budget = folder, budget
        self._genome_of, self._digest_of = genome_of, digest_of
        self._source: Source | None = None
        self._making = threading.RLock()
        self._guard = threading.Lock()
        self._held: Counter[str] = Counter()
        self._needed: frozenset[str] | None = None
        self._own: set[str] = set()
        self._verified: dict[str, list[int]] = {}
        self._short = False
        self._parents: dict[str, tuple[Merge, ...]] = {}
        self.seconds = 0.0  # spent on making merges

    def attach(self, source: Source) -> None:
        """Name the materialiser that rebuilds parents; it says so itself."""
        self._source = source

    def tensor(self, merge: Merge, slot: str) -> torch.Tensor:
        """One slot of a merge, on the CPU.

        Raises:
            RunError: It had to be made again and came out different, or the disk is failing.
        """
        return self._read(merge, lambda opened: opened.get_tensor(slot))

    def digest(self, merge: Merge) -> str:
        """SHA-256 of a merge's tensors."""
        return self._read(merge, lambda opened: opened.metadata()["digest"])

    @contextmanager
    def holding(self, merges: Collection[Merge]) -> Iterator[None]:
        """Keep merges from being cleared while the block runs; they need not be there yet."""
        ids = [merge.id for merge in merges]
        with self._guard:
            self._held.update(ids)
        try:
            yield
        finally:
            with self._guard:
                self._held.subtract(ids)

    def holds(self, merges: Iterable[Merge]) -> bool:
        """Whether all of them are there."""
        return all(self._path(merge).exists() for merge in merges)

    def ensure(self, merges: Iterable[Merge]) -> None:
        """Make what is not there.

        Raises:
            UserError: A method cannot merge these parents, or not within the base's dtype.
            RunError: A merge made again differs from the one recorded, or the disk is failing.
        """
        with self._making:
            wanted = list(merges)
            plan = self._missing(wanted)
            if not plan:
                return
            start = time.perf_counter()
            last = {merge.id: len(plan) for merge in wanted}
            for step, merge in enumerate(plan):
                for parent in self._parents_of(merge):
                    last[parent.id] = max(last.get(parent.id, 0), step)
            for step, merge in enumerate(plan):
                in_use = {id_ for id_, until in last.items() if until >= step}
                self._clear(self.size, in_use)
                self._make(merge)
            self._clear(0, {merge.id for merge in wanted})
            self.seconds += time.perf_counter() - start

    def keep(self, needed: Iterable[str]) -> bool:
        """Clear the folder down to the budget: first what is not *needed* (ids), oldest first.

        Returns:
            Whether needed ones had to go since the last call; they are made again when asked for.
        """
        self._needed = frozenset(needed)
        self._clear(0, ())
        short, self._short = self._short, False
        return short

    def remove_debris(self) -> None:
        """Remove what a killed process left half written; nobody else may be writing."""
        for path in self._folder.glob(".making-*"):
            shutil.rmtree(path, ignore_errors=True)

    @cached_property
    def size(self) -> int:
        """Bytes of one merge's tensors, known once a materialiser is attached."""
        source = self._attached()
        return sum(
            torch.Size(slot.shape).numel() * source.base_weight(index).itemsize
            for index, slot in enumerate(source.basis.layout.slots)
        )

    # Inside.

    def _read(self, merge: Merge, part: Callable[[Any], _Part]) -> _Part:
        path = self._path(merge)
        while True:
            try:
                seen = signature(path)
                if self._verified.get(merge.id) != seen:
                    _verify(path, merge)
                    self._verified[merge.id] = seen
                with safe_open(path, framework="pt") as opened:
                    return part(opened)
            except FileNotFoundError:
                self.ensure([merge])
            except (SafetensorError, ValueError):  # damaged: not by us, they appear whole
                with self._making, suppress(FileNotFoundError):
                    if signature(path) == seen:
                        path.unlink()

    def _attached(self) -> Source:
        if self._source is None:  # all was there, and another process has cleared it meanwhile
            raise RunError(
                "a merge was cleared while it was read",
                where=str(self._folder),
                remedy="run the same command again",
            )
        return self._source

    def _path(self, merge: Merge) -> Path:
        return self._folder / f"{merge.id}.safetensors"

    def _missing(self, wanted: Iterable[Merge]) -> list[Merge]:
        """What must be made for *wanted* to be there, parents before children."""
        plan: list[Merge] = []
        seen: set[str] = set()
        stack = [(merge, False) for merge in wanted]
        while stack:
            merge, expanded = stack.pop()
            if expanded:
                plan.append(merge)
            elif merge.id not in seen and not self._path(merge).exists():
                seen.add(merge.id)
                stack.append((merge, True))
                stack += [(parent, False) for parent in self._parents_of(merge)]
        return plan

    def _parents_of(self, merge: Merge) -> tuple[Merge, ...]:
        """The merges that a merge's parents weigh."""
        if merge.id not in self._parents:
            parents = [self._genome_of(parent) for parent in merge.parents]
            self._parents[merge.id] = tuple(m for parent in parents for m in parent.merges)
        return self._parents[merge.id]

    def _make(self, merge: Merge) -> None:
        parents = {hash_: self._genome_of(hash_) for hash_ in merge.parents}
        source = self._attached()
        method, slots = find_method(merge.method), source.basis.layout.slots
        groups = [0] * len(slots)
        if merge.drawn is not None:
            groups = source.basis.layout.groups(merge.drawn.per).tolist()
        digest = hashlib.sha256()
        metadata = {"merge": merge.text, "digest": "0" * digest.digest_size * 2}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".making-", dir=self._folder))
        except OSError as error:
            raise self._failure(error) from error
        try:
            place = temporary / self._path(merge).name
            with tensor_file(place, [slot.name for slot in slots], metadata) as add:
                for index, slot in enumerate(slots):
                    base = source.base_weight(index)
                    of = {
                        hash_: source.weight(parent, index, dtype=torch.float32)
                        for hash_, parent in parents.items()
                    }
                    with _seeded(merge.seed, index, source.device):
                        merged = method.merge(
                            [of[hash_] for hash_ in merge.parents],
                            base.float(),
                            merge.parameters_in(groups[index]),
                            name=slot.name,
                        )
                    merged = merged.to("cpu", base.dtype).contiguous()
                    if not is_finite(merged):
                        raise overflow(slot.name, base.dtype, of=f"merge {merge.id[:12]}")
                    digest.update(merged.reshape(-1).view(torch.uint8).numpy().data)
                    add(slot.name, merged)
                metadata["digest"] = digest.hexdigest()
            self._compare(merge, metadata["digest"])
            os.replace(place, self._path(merge))
            with suppress(FileNotFoundError):
                self._verified[merge.id] = signature(self._path(merge))
        except OSError as error:
            raise self._failure(error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._own.add(merge.id)

    def _failure(self, error: OSError) -> RunError:
        return RunError(
            f"cannot be written: {error.strerror}",
            where=str(self._folder),
            remedy="free some space and run the same command again",
        )

    def _compare(self, merge: Merge, digest: str) -> None:
        recorded = self._digest_of(merge.id)
        if recorded not in (None, digest):
            raise RunError(
                f"merge {merge.id[:12]} had been cleared, and comes out different here",
                where=str(self._folder),
                remedy="go on with the machine, threads and library versions of the run",
            )

    def _clear(self, room: int, in_use: Collection[str]) -> None:
        """Delete until *room* more bytes fit the budget, or all that is left is in use.

        Before `keep` has said what is needed, only what was made here.
        """
        with self._guard:
            found = []
            for path in self._folder.glob("*.safetensors"):
                with suppress(FileNotFoundError):
                    state = path.stat()
                    found.append((state.st_mtime_ns, path, state.st_size))
            total = sum(size for *_, size in found)
            needed = self._needed
            free = [
                (path.stem in (needed or ()), age, path, size)
                for age, path, size in found
                if path.stem not in in_use
                and self._held[path.stem] <= 0
                and (needed is not None or path.stem in self._own)
            ]
            for is_needed, _, path, size in sorted(free):
                if total + room <= self._budget:
                    break
                path.unlink(missing_ok=True)
                self._short |= is_needed
                total -= size


def _verify(path: Path, merge: Merge) -> None:
    """Compare a file's numbers with the digest that it has itself.

    Raises:
        SafetensorError, ValueError: It is damaged.
    """
    with safe_open(path, framework="pt") as opened:
        described = opened.metadata() or {}
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # tensors lie there one by one
    if (described.get("merge"), described.get("digest")) != (merge.text, digest):
        raise ValueError(f"{path} is damaged")


@contextmanager
def _seeded(seed: int, slot: int, device: torch.device) -> Iterator[None]:
    """mergekit draws from torch's global generator: seed it for one slot, then put it back."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(generator(seed, slot, "merge").integers(2**63)))
        yield
