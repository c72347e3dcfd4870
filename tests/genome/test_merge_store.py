"""Merges as weighed points: algebra, the store's files, its budget, and merges made again."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

from cqd_hub.errors import RunError, UserError
from cqd_hub.genome import (
    Basis,
    Genome,
    Materialiser,
    combine,
    mutate_child,
    mutate_expert,
    mutate_gaussian,
)
from cqd_hub.genome.export import export_adapter, export_checkpoint, export_mergekit
from cqd_hub.genome.materialise import normal
from cqd_hub.genome.merge import Merge
from cqd_hub.genome.merge.store import MergeStore
from tests.genome.conftest import Family
from tests.genome.run_mergekit import merged
from tests.genome.tiny_models import basis_of, load


class Line:
    """A lineage: individuals by hash, and the store of their merges."""

    def __init__(self, basis: Basis, folder: Path, budget: int = 10**9) -> None:
        self.basis, self.folder, self.made = basis, folder, list[str]()
        self.known: dict[str, Genome] = {}
        self.digests: dict[str, str] = {}
        self.experts = [
            self.add(Genome.of_expert(basis.hash, basis.layout, number))
            for number in range(len(basis.experts))
        ]
        self.open(budget)

    def open(self, budget: int) -> MergeStore:
        def digest_of(merge: str) -> str | None:  # asked once whenever a merge is made
            self.made.append(merge)
            return self.digests.get(merge)

        self.store = MergeStore(
            self.folder, budget=budget, genome_of=self.known.__getitem__, digest_of=digest_of
        )
        self.materialiser = Materialiser(self.basis, merges=self.store)
        return self.store

    def add(self, genome: Genome) -> Genome:
        self.known[genome.hash] = genome
        return genome

    def child(self, *parents: Genome, method: str = "ties", seed: int = 0) -> Genome:
        parameters: dict[str, Any] = {"weight": [0.6, 0.5], "density": 0.5}
        hashes = [parent.hash for parent in parents]
        merge = Merge.make(method, parents=hashes, seed=seed, parameters=parameters)
        return self.add(Genome.of_merge(self.basis.hash, self.basis.layout, merge))

    def files(self) -> set[str]:
        return {path.stem for path in self.folder.glob("*.safetensors")}

    def state(self, genome: Genome, **options: Any) -> dict[str, torch.Tensor]:
        return self.materialiser.state(genome, **options)


def ids(*genomes: Genome) -> set[str]:
    return {merge.id for genome in genomes for merge in genome.merges}


@pytest.fixture
def line(family: Callable[..., Family], tmp_path: Path) -> Line:
    made = family()
    basis = basis_of(made.base, [*made.full[:2], made.lora[0]], tmp_path / "cache")
    return Line(basis, tmp_path / "merges")


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


class TestGenome:
    def test_a_child_of_a_merge_is_the_merge_itself(self, line: Line) -> None:
        child = line.child(line.experts[0], line.experts[1])
        (file,) = ids(child)
        assert equal(line.state(child), load_file(line.folder / f"{file}.safetensors"))

    def test_everything_linear_goes_on_from_a_merge(self, line: Line) -> None:
        """Against a float64 sum, over crossovers and both mutations, with two merges."""
        basis, layout, rng = line.basis, line.basis.layout, np.random.default_rng(0)
        first = line.child(line.experts[0], line.experts[2])
        second = line.child(first, line.experts[1], method="dare_ties")
        points = [line.state(point, dtype=torch.float64) for point in (first, second)]
        zero = Genome.of_base(basis.hash, layout)
        base = line.state(zero, dtype=torch.float64)
        shares = rng.normal(0.5, 0.3, (3, len(layout.slots)))
        step = mutate_expert(zero, rng, basis=basis, expert=1, w_max=0.4)
        mixed = combine([first, second, line.experts[0]], shares, layout)
        mixed = combine([mixed, step], np.ones(2), layout)
        mixed = mutate_gaussian(mixed, seed=3, deviation=0.02, basis=basis)
        again = combine([mixed, second], np.array([0.25, 0.5]), layout)
        expert, moved = (
            line.state(genome, dtype=torch.float64) for genome in (line.experts[0], step)
        )
        made = line.state(again, dtype=torch.float32)
        for index, slot in enumerate(layout.slots):
            name = slot.name
            deltas = [point[name] - base[name] for point in (*points, expert)]
            wanted = sum(
                (float(shares[i, index]) * delta for i, delta in enumerate(deltas)),
                start=moved[name] - base[name],
            )
            if slot.is_matrix:
                wanted = wanted + 0.02 * normal(3, index, slot.shape).double()
            wanted = base[name] + 0.25 * wanted + 0.5 * deltas[1]
            assert torch.allclose(made[name].double(), wanted, atol=2e-6, rtol=2e-6), name

    def test_it_is_read_as_it_was_written(self, line: Line) -> None:
        one, two = (line.child(*line.experts[:2], seed=seed) for seed in (1, 2))
        shares = np.random.default_rng(0).normal(0.5, 0.3, (2, len(line.basis.layout.slots)))
        mixed = combine([one, two], shares, line.basis.layout)
        back = Genome.from_bytes(mixed.to_bytes())
        assert back.hash == mixed.hash
        assert list(back.merges) == list(mixed.merges)
        assert equal(line.state(back), line.state(mixed))

    def test_noise_and_merges_are_summed_in_one_order(self, line: Line) -> None:
        """However they came together: floating-point sums of three depend on it."""
        layout = line.basis.layout
        points = [line.child(*line.experts[:2], seed=seed) for seed in (1, 2, 3)]
        points = [
            mutate_gaussian(point, seed=9 - number, deviation=0.01, basis=line.basis)
            for number, point in enumerate(points)
        ]
        shares = np.array([0.3, 0.5, 0.4])
        one = combine(points, shares, layout)
        two = combine(points[::-1], shares[::-1], layout)
        assert one.hash == two.hash
        backwards = Genome(
            one.basis,
            one.coefficients,
            noise=dict(reversed(one.noise.items())),
            merges=dict(reversed(one.merges.items())),
        )
        for other in (two, backwards, Genome.from_bytes(one.to_bytes())):
            assert equal(line.state(other), line.state(one))

    def test_the_hash_is_of_merges_and_weights(self, line: Line) -> None:
        one, two = (line.child(*line.experts[:2], seed=seed) for seed in (1, 2))
        layout = line.basis.layout
        half = combine([one], np.array([0.5]), layout)
        zero = Genome.of_base(line.basis.hash, layout)
        assert len({one.hash, two.hash, half.hash, zero.hash}) == 4

    def test_merges_that_cancel_are_dropped(self, line: Line) -> None:
        one = line.child(*line.experts[:2])
        half = combine([one, line.experts[0]], np.array([0.5, 0.5]), line.basis.layout)
        rest = combine([half, one], np.array([2.0, -1.0]), line.basis.layout)
        assert rest.merges == {}
        assert rest.hash == line.experts[0].hash

    def test_without_merges_nothing_changes_on_disk(self, line: Line) -> None:
        def header(genome: Genome) -> dict[str, str]:
            data = genome.to_bytes()
            return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]

        assert header(line.experts[0]) == {"format": "1", "basis": line.basis.hash}
        # An older reader must not take it for a genome without merges.
        assert header(line.child(*line.experts[:2]))["format"] == "2"

    def test_svd_mutation_of_the_child_is_refused(self, line: Line) -> None:
        child = line.child(*line.experts[:2])
        with pytest.raises(UserError, match="`of: child` cannot follow a merge"):
            mutate_child(child, np.random.default_rng(0), basis=line.basis, w_max=0.3)


class TestFiles:
    def test_a_file_names_its_merge_and_is_in_the_bases_dtype(
        self, family: Callable[..., Family], tmp_path: Path
    ) -> None:
        made = family(dtype="bfloat16")
        line = Line(basis_of(made.base, made.full[:2], tmp_path / "cache"), tmp_path / "merges")
        child = line.child(*line.experts)
        state = line.state(child)
        ((merge, _),) = child.merges.items()
        path = line.folder / f"{merge.id}.safetensors"
        with safe_open(path, framework="pt") as opened:
            assert opened.metadata()["merge"] == merge.text
            assert opened.metadata()["digest"] == line.store.digest(merge)
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}
        assert equal(state, load_file(path))
        assert path.stat().st_size < line.store.size + 10_000

    def test_what_is_there_is_read_and_not_made_again(self, line: Line) -> None:
        child = line.child(*line.experts[:2])
        line.state(child)
        line.open(10**9)
        line.state(child)
        assert line.made == [*ids(child)]

    @pytest.mark.parametrize("damage", [b"", b"xxxxxxxxx"])
    def test_a_damaged_file_is_made_again(self, line: Line, damage: bytes) -> None:
        child = line.child(*line.experts[:2])
        state = line.state(child)
        (path,) = line.folder.iterdir()
        whole = path.read_bytes()
        for content in (damage, whole[: len(whole) // 2]):
            path.write_bytes(content)
            assert equal(line.state(child), state)
            assert path.read_bytes() == whole

    @pytest.mark.parametrize("where", [-1, -4000, "merge", "digest"])
    def test_changed_numbers_are_noticed_at_first_use(self, line: Line, where: int | str) -> None:
        """What a power cut leaves of a file that was never synced, or another merge's file."""
        child = line.child(*line.experts[:2])
        state = line.state(child)
        (path,) = line.folder.iterdir()
        whole = path.read_bytes()
        broken = bytearray(whole)
        at = where if isinstance(where, int) else whole.index(where.encode()) + len(where) + 8
        broken[at] ^= 1
        path.write_bytes(broken)
        line.open(10**9)
        if where == "digest":
            assert (
                line.store.digest(*child.merges)
                == whole.decode("latin1").split('"digest":"')[1].split('"')[0]
            )
        assert equal(line.state(child), state)
        assert path.read_bytes() == whole

    def test_a_file_is_verified_once(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        child = line.child(*line.experts[:2])
        state = line.state(child)
        read = list[str]()
        real = hashlib.file_digest

        def noting(file: Any, algorithm: str) -> Any:
            read.append(file.name)
            return real(file, algorithm)

        monkeypatch.setattr(hashlib, "file_digest", noting)
        assert equal(line.state(child), state)
        assert not read  # this store has made it
        line.open(10**9)
        for _ in range(3):
            assert equal(line.state(child), state)
        assert len(read) == 1

    def test_debris_goes_and_the_rest_stays(self, line: Line) -> None:
        child = line.child(*line.experts[:2])
        line.state(child)
        (line.folder / ".making-x").mkdir()
        (line.folder / ".making-x" / "half.safetensors").write_bytes(b"half")
        line.store.remove_debris()
        assert {path.stem for path in line.folder.iterdir()} == ids(child)

    def test_a_full_disk_leaves_nothing_behind(self, line: Line) -> None:
        child = line.child(*line.experts[:2])
        with (
            _largest_file(line.store.size // 2),
            pytest.raises(RunError, match="cannot be written"),
        ):
            line.state(child)
        assert not line.folder.exists() or not list(line.folder.iterdir())
        line.state(child)

    def test_a_store_is_needed(self, line: Line) -> None:
        child = line.child(*line.experts[:2])
        with pytest.raises(ValueError, match="needs the store"):
            Materialiser(line.basis).state(child)


class TestBudget:
    def lineage(self, line: Line, depth: int) -> list[Genome]:
        """Each child of the two before it, mutated: every merge is an ancestor of the last."""
        children = [line.experts[0], line.experts[1]]
        for number in range(depth):
            child = line.child(*children[-2:], seed=number)
            mutated = mutate_gaussian(child, seed=number, deviation=0.01, basis=line.basis)
            children.append(line.add(mutated))
        return children[2:]

    def test_a_cleared_line_comes_back_bit_for_bit_each_merge_made_once(self, line: Line) -> None:
        children = self.lineage(line, 8)
        states = [line.state(child) for child in children]
        assert line.made == [next(iter(child.merges)).id for child in children]
        for path in line.folder.iterdir():
            path.unlink()
        line.made.clear()
        line.open(1)
        most = 0

        class Watched(dict[str, Genome]):
            def __getitem__(watched, key: str) -> Genome:
                nonlocal most
                most = max(most, len(line.files()))
                return super().__getitem__(key)

        line.known = Watched(line.known)
        line.open(1)
        assert equal(line.state(children[-1]), states[-1])
        assert len(line.made) == 8
        assert line.files() <= ids(children[-1])
        assert most <= 3  # both parents' and one more, however long the line
        assert equal(line.state(children[3]), states[3])

    def test_it_is_compared_with_what_was_recorded(self, line: Line) -> None:
        child = line.child(*line.experts[:2])
        line.state(child)
        ((merge, _),) = child.merges.items()
        line.digests[merge.id] = line.store.digest(merge)
        (line.folder / f"{merge.id}.safetensors").unlink()
        line.state(child)
        line.digests[merge.id] = "0" * 64
        (line.folder / f"{merge.id}.safetensors").unlink()
        with pytest.raises(RunError, match="had been cleared, and comes out different here"):
            line.state(child)
        assert line.files() == set()

    def test_first_goes_what_nobody_needs_then_the_oldest(self, line: Line) -> None:
        children = [line.child(*line.experts[:2], seed=seed) for seed in range(5)]
        for number, child in enumerate(children):
            line.state(child)
            os.utime(line.folder / f"{next(iter(ids(child)))}.safetensors", (number, number))
        size = max(path.stat().st_size for path in line.folder.iterdir())
        store = line.open(3 * size)
        assert store.keep(ids(children[0], children[4])) is False
        assert line.files() == ids(children[0], children[3], children[4])
        assert line.open(10**9).keep(ids(children[0])) is False
        assert line.files() == ids(children[0], children[3], children[4])
        store = line.open(size)
        assert store.keep(ids(children[0], children[4])) is True  # a needed one had to go
        assert line.files() == ids(children[4])
        assert store.keep(ids(children[4])) is False

    def test_what_is_held_stays(self, line: Line) -> None:
        one, two = (line.child(*line.experts[:2], seed=seed) for seed in (1, 2))
        store = line.open(1)
        with store.holding(one.merges):
            store.ensure(one.merges)
            line.state(two)
            store.keep([])
            assert line.files() == ids(one)
        store.keep([])
        assert line.files() == set()

    def test_a_reader_clears_only_what_it_made(self, line: Line) -> None:
        one, two = (line.child(*line.experts[:2], seed=seed) for seed in (1, 2))
        line.state(one)
        line.open(1)
        line.state(two)
        line.store.ensure(line.child(*line.experts[:2], seed=3).merges)
        assert line.files() >= ids(one)
        assert not line.files() & ids(two)

    def test_threads_share_it(self, line: Line) -> None:
        children = self.lineage(line, 4)
        wanted = [line.state(child) for child in children]
        for path in line.folder.iterdir():
            path.unlink()
        line.open(1)
        found: dict[int, dict[str, torch.Tensor]] = {}
        threads = [
            threading.Thread(target=lambda n=number: found.update({n: line.state(children[n])}))
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(equal(found[number], wanted[number]) for number in range(4))


class TestExports:
    @pytest.fixture
    def mixed(self, line: Line) -> Genome:
        child = line.child(line.experts[0], line.experts[1])
        half = combine([child, line.experts[2]], np.array([0.7, 0.4]), line.basis.layout)
        return mutate_gaussian(half, seed=1, deviation=0.01, basis=line.basis)

    def test_checkpoint(self, line: Line, mixed: Genome, tmp_path: Path) -> None:
        export_checkpoint(mixed, line.materialiser, tmp_path / "out")
        model = load(tmp_path / "out")
        state = line.state(mixed)
        assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)

    def test_adapter(self, line: Line, mixed: Genome, tmp_path: Path) -> None:
        base, state = line.basis.base.checkpoint.path, line.state(mixed)
        export_adapter(
            mixed,
            line.basis,
            tmp_path / "out",
            base_name=str(base),
            purpose="merge",
            merges=line.store,
        )
        model = PeftModel.from_pretrained(load(base), str(tmp_path / "out")).merge_and_unload()
        for name, tensor in model.state_dict().items():
            if name in state:
                assert torch.allclose(tensor, state[name], atol=1e-5), name

    def test_mergekit(self, line: Line, mixed: Genome, tmp_path: Path) -> None:
        recipe = export_mergekit(
            mixed, line.basis, tmp_path / "out", out_dtype="float32", merges=line.store
        )
        state = line.state(mixed)
        for name, tensor in merged(recipe, tmp_path).items():
            if name in state:
                assert torch.allclose(tensor, state[name], atol=1e-5), name


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """What a full disk does: no file of this process may grow beyond *size*."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
