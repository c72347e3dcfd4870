from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cqd_hub.errors import RunError
from cqd_hub.genome import Basis, Genome, Materialiser, build_basis, open_models, store
from cqd_hub.genome.factor import factor
from cqd_hub.genome.layout import Slot
from cqd_hub.genome.models.experts import FullExpert
from tests.genome.tiny_models import basis_of, edit_tensors, make_full, make_lora, weights


def rebuilt(basis: Basis, genome: Genome) -> dict[str, torch.Tensor]:
    return Materialiser(basis).state(genome, dtype=torch.float32)


def test_base_and_full_experts_come_back_bit_for_bit(family: Any, tmp_path: Path) -> None:
    made = family(tied=False, dtype="bfloat16")
    for options in ({}, {"rank": 5}):
        basis = basis_of(made.base, made.full, tmp_path, **options)
        paths = [made.base, *made.full]
        genomes = [Genome.of_base(basis.hash, basis.layout)]
        genomes += [Genome.of_expert(basis.hash, basis.layout, e) for e in range(3)]
        for path, genome in zip(paths, genomes, strict=True):
            state, truth = Materialiser(basis).state(genome), weights(path, made.base)
            assert state.keys() == truth.keys()
            for name, tensor in state.items():
                assert tensor.dtype == torch.bfloat16
                assert torch.equal(tensor.double(), truth[name]), name


def test_lora_expert_is_what_peft_merges(family: Any, tmp_path: Path) -> None:
    made = family()
    basis = basis_of(made.base, made.lora, tmp_path)
    for number, path in enumerate(made.lora):
        state = rebuilt(basis, Genome.of_expert(basis.hash, basis.layout, number))
        for name, truth in weights(path, made.base).items():
            assert (state[name] - truth).norm() <= 1e-6 * truth.norm(), name


def test_tail_has_one_scale_beyond_exactly_r_directions(family: Any, tmp_path: Path) -> None:
    made = family()
    basis = basis_of(made.base, made.full[:1], tmp_path, rank=12)
    base, expert = weights(made.base, made.base), weights(made.full[0], made.base)
    g = Genome.of_base(basis.hash, basis.layout).coefficients.copy()
    name = "model.layers.0.mlp.up_proj.weight"
    slot = [slot.name for slot in basis.layout.slots].index(name)
    segment = basis.layout.segments[slot][0]
    assert (segment.rank, segment.tail) == (12, True)
    g[segment.start : segment.stop] = [3, *[0] * 10, -2, 0.5]
    tau = expert[name] - base[name]
    u, s, vh = torch.linalg.svd(tau, full_matrices=False)
    w = torch.tensor([3, *[0] * 10, -2] + [0.5] * (len(s) - 12), dtype=torch.float64)
    truth = base[name] + (u * (w * s)) @ vh
    error = (rebuilt(basis, Genome(basis.hash, g))[name] - truth).norm() / truth.norm()
    assert error < 1e-6
    g[segment.start : segment.stop] = 0.5
    half = rebuilt(basis, Genome(basis.hash, g))[name]
    assert (half - base[name] - 0.5 * tau).norm() <= 1e-6 * base[name].norm()
    assert basis.retained[0][name] == pytest.approx(
        float(s[:12].square().sum() / s.square().sum()), rel=1e-6
    )


def test_unchanged_matrices_take_no_coefficients(family: Any, tmp_path: Path) -> None:
    made = family()
    frozen = make_full(made.base, tmp_path / "frozen", seed=9)
    truth = weights(made.base, made.base)
    name = "model.embed_tokens.weight"
    edit_tensors(frozen / "model.safetensors", lambda t: t | {name: truth[name].float()})
    basis = basis_of(made.base, [frozen, made.full[0]], tmp_path)
    slot = [slot.name for slot in basis.layout.slots].index(name)
    assert basis.layout.ranks[slot] == (0, 32)
    assert not any(basis.layout.tails[slot])
    state = rebuilt(basis, Genome.of_expert(basis.hash, basis.layout, 0))
    assert torch.equal(state[name].double(), truth[name])


def test_coefficients_belong_to_an_expert_whatever_the_order(family: Any, tmp_path: Path) -> None:
    made = family()
    mixed = [made.full[0], made.lora[0], made.full[1]]
    forth = basis_of(made.base, mixed, tmp_path, rank=6)
    back = basis_of(made.base, mixed[::-1], tmp_path, rank=6)
    assert forth.hash != back.hash
    assert forth.layout.experts == back.layout.experts[::-1]
    draws = {
        hash_: np.random.default_rng(number).normal(size=forth.layout.size)
        for number, hash_ in enumerate(forth.layout.experts)
    }
    states = []
    for basis in (forth, back):
        g = np.zeros(basis.layout.size, np.float32)
        for number, hash_ in enumerate(basis.layout.experts):
            mine = basis.layout.expert_of == number
            g[mine] = draws[hash_][: mine.sum()]
        states.append(rebuilt(basis, Genome(basis.hash, g)))
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=2e-6)


def test_genomes_of_another_basis_are_refused(family: Any, tmp_path: Path) -> None:
    made = family()
    one, two = (basis_of(made.base, [path], tmp_path) for path in made.lora[:2])
    with pytest.raises(ValueError, match="genome of basis"):
        Materialiser(two).state(Genome.of_base(one.hash, one.layout))


def test_cache_is_keyed_by_content(family: Any, tmp_path: Path) -> None:
    made = family()
    expert, cache, lines = made.lora[0], tmp_path / "cache", list[str]()
    first = basis_of(made.base, [expert], cache, progress=lines.append)
    again = basis_of(made.base, [expert], cache, progress=lines.append)
    assert len(lines) == 1
    assert again.hash == first.hash
    other = make_lora(made.base, tmp_path / "changed", seed=4)
    assert basis_of(made.base, [other], cache, progress=lines.append).hash == first.hash
    edit_tensors(
        other / "adapter_model.safetensors", lambda t: {n: x * 1.0001 for n, x in t.items()}
    )
    assert basis_of(made.base, [other], cache, progress=lines.append).hash != first.hash
    assert len(lines) == 2


def test_damaged_cache_entry_is_made_again(family: Any, tmp_path: Path) -> None:
    made = family()
    first = basis_of(made.base, made.lora[:1], tmp_path)
    entry = next((tmp_path / "basis").rglob("*.safetensors"))
    entry.write_bytes(entry.read_bytes()[:-100])
    assert basis_of(made.base, made.lora[:1], tmp_path).hash == first.hash


def test_a_flipped_bit_in_the_cache_is_noticed(family: Any, tmp_path: Path) -> None:
    made = family()
    basis = basis_of(made.base, made.lora[:1], tmp_path)
    entry = next((tmp_path / "basis").rglob("*.safetensors"))
    content = bytearray(entry.read_bytes())
    content[-1] ^= 1
    entry.write_bytes(content)
    expert = Genome.of_expert(basis.hash, basis.layout, 0)
    with pytest.raises(RunError, match="are damaged"):
        rebuilt(basis, expert)


def test_an_interrupted_build_carries_on(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = family()
    whole = basis_of(made.base, made.full[:1], tmp_path / "a")
    monkeypatch.setattr(store, "_SHARD", 1 << 12)
    models = open_models(made.base, made.full[:1])
    seen: list[str] = []

    def stop_in_the_middle(slot: Slot) -> torch.Tensor:
        seen.append(slot.name)
        if len(seen) == 9:
            raise KeyboardInterrupt
        return FullExpert.task_vector(models[1][0], slot)

    broken = SimpleNamespace(
        task_vector=stop_in_the_middle,
        form=models[1][0].form,
        path=models[1][0].path,
        content_hash=models[1][0].content_hash,
    )
    with pytest.raises(KeyboardInterrupt):
        build_basis(models[0], [broken], cache=tmp_path / "b")
    before = {file: file.read_bytes() for file in (tmp_path / "b").rglob("*.safetensors")}
    assert len(before) > 1
    resumed = build_basis(*models, cache=tmp_path / "b")
    assert resumed.hash == whole.hash
    after = {file.name: file.read_bytes() for file in (tmp_path / "b").rglob("*.safetensors")}
    assert all(after[file.name] == content for file, content in before.items())


HASHES = """
import sys
from pathlib import Path
import numpy as np
from cqd_hub.genome import Genome, build_basis, mutate_child, open_models
models = open_models(Path(sys.argv[1]), [Path(path) for path in sys.argv[3:]])
basis = build_basis(*models, cache=Path(sys.argv[2]))
genome = Genome.of_expert(basis.hash, basis.layout, 0)
genome = mutate_child(genome, np.random.default_rng(0), basis=basis, w_max=0.3)
print(basis.hash, genome.hash, Genome.from_bytes(genome.to_bytes()).hash)
"""


@pytest.mark.slow
def test_hashes_are_the_same_in_every_process(family: Any, tmp_path: Path) -> None:
    made = family()
    command = [sys.executable, "-c", HASHES, made.base, tmp_path, made.full[0], made.lora[0]]
    answers = []
    for salt in ("1", "2"):
        done = subprocess.run(
            [str(part) for part in command],
            env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": salt, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        answers.append(done.stdout.split())
    assert answers[0] == answers[1]
    assert answers[0][1] == answers[0][2]


def random_genome(basis: Basis, seed: int, change: Callable[[np.ndarray], None]) -> Genome:
    g = np.random.default_rng(seed).normal(size=basis.layout.size).astype(np.float32)
    change(g)
    return Genome(basis.hash, g)


def test_serialisation_keeps_every_bit(family: Any, tmp_path: Path) -> None:
    basis = basis_of(family().base, family().lora[:2], tmp_path)
    rng = np.random.default_rng(0)
    cores = {"b": rng.normal(size=(3, 2)).astype(np.float32), "a": np.zeros((1, 1), np.float32)}
    noise = {2**62: rng.normal(size=len(basis.layout.slots)).astype(np.float32)}
    genome = Genome(basis.hash, rng.normal(size=basis.layout.size).astype(np.float32), cores, noise)
    back = Genome.from_bytes(genome.to_bytes())
    assert back.basis == genome.basis
    assert np.array_equal(back.coefficients, genome.coefficients)
    assert back.cores.keys() == cores.keys()
    assert np.array_equal(back.cores["b"], cores["b"])
    assert np.array_equal(back.noise[2**62], noise[2**62])
    assert back.hash == genome.hash
    for changed in (
        random_genome(basis, 0, lambda g: None),
        Genome(basis.hash, genome.coefficients, cores),
        Genome("0" * 64, genome.coefficients, cores, noise),
    ):
        assert changed.hash != genome.hash
    with pytest.raises(ValueError, match="genome format '9'"):
        Genome.from_bytes(genome.to_bytes().replace(b'"format":"1"', b'"format":"9"'))


@pytest.mark.parametrize("rank", ["full", 5])
def test_large_matrices_read_by_rows_give_the_same_factors(
    rank: Any, family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = family(tied=False)
    whole = basis_of(made.base, made.full[:1], tmp_path / "whole", rank=rank)
    monkeypatch.setattr("cqd_hub.genome.models.experts._LARGE", 0)
    by_rows = basis_of(made.base, made.full[:1], tmp_path / "rows", rank=rank)
    assert by_rows.hash == whole.hash


@pytest.mark.parametrize("columns", [200, 12])
def test_few_directions_of_many_hold_what_the_best_hold(columns: int) -> None:
    """Of a heavy tail, and of a matrix with fewer directions than asked for."""
    random = torch.Generator().manual_seed(1)
    left, _ = torch.linalg.qr(torch.randn(300, 200, generator=random))
    right, _ = torch.linalg.qr(torch.randn(200, 200, generator=random))
    scale = torch.arange(1, 201) ** -0.5 * (torch.arange(200) < columns)
    delta = (left * scale) @ right.T
    for tau in (delta, delta.T.contiguous()):
        (up, down), energy, kept = factor(tau, 16)
        assert energy == pytest.approx(float(scale.square().sum()), rel=1e-6)
        assert kept == pytest.approx(float(scale[:16].square().sum()), rel=1e-3)
        assert (down @ down.T - torch.eye(16)).abs().max() < 1e-5 or columns == 12
        assert (up @ down - tau).norm() ** 2 == pytest.approx(energy - kept, rel=1e-3, abs=1e-9)
