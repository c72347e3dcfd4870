"""Weights kept in the host's memory: the same individuals, bit for bit, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cqd_hub.errors import RunError
from cqd_hub.genome import (
    Basis,
    Genome,
    Materialiser,
    build_basis,
    crossover,
    mutate_child,
    mutate_expert,
    mutate_gaussian,
    open_models,
)
from cqd_hub.genome.held import Held, Streamed
from cqd_hub.genome.store import FactorStore
from tests.genome.families import adapt, fine_tune, make_model
from tests.genome.tiny_models import basis_of, load


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy for a CPU as for other devices, a few rows at a time."""
    monkeypatch.setattr("cqd_hub.genome.materialise._BLOCK", 20 * 32)
    monkeypatch.setattr(
        "cqd_hub.genome.materialise.held",
        lambda device, weights: (Streamed if weights == "host" else Held)(device),
    )


def individuals(basis: Basis) -> list[Genome]:
    """Base, expert, mutant, crossover, noise and, where it can be, a core."""
    layout, rng = basis.layout, np.random.default_rng(0)
    experts = [Genome.of_expert(basis.hash, layout, e) for e in range(len(basis.experts))]
    mutant = mutate_expert(experts[0], rng, basis=basis, expert=1, w_max=0.3)
    child = crossover([mutant, experts[-1]], np.array([0.7, 0.3]), basis)
    made = [Genome.of_base(basis.hash, layout), experts[0], mutant, child]
    made.append(mutate_gaussian(child, seed=3, deviation=0.01, basis=basis))
    if not basis.has_tails:
        made.append(mutate_child(child, rng, basis=basis, w_max=0.3))
    return made


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.fixture(scope="module", params=["gpt2", "lfm2", "gpt_oss"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Turned, convolutional and stacked slots among them; experts of every form."""
    folder = tmp_path_factory.mktemp(request.param)
    base = make_model(request.param, folder / "base", dtype=torch.bfloat16)
    experts = [
        fine_tune(base, folder / "half", seed=1, dtype=torch.bfloat16),
        fine_tune(base, folder / "full", seed=2, dtype=torch.float32),
        adapt(base, folder / "lora", seed=3),
    ]
    return open_models(base, experts)


@pytest.mark.usefixtures("streaming")
@pytest.mark.parametrize("options", [{"rank": 6}, {}], ids=str)
def test_every_kind_of_slot_is_the_same_from_the_host(
    models: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    basis = build_basis(*models, cache=tmp_path, **options)
    device, host = Materialiser(basis), Materialiser(basis, weights="host")
    assert isinstance(host._held, Streamed)
    for genome in individuals(basis):
        for dtype in (torch.float32, torch.bfloat16):
            assert same(host.state(genome, dtype=dtype), device.state(genome, dtype=dtype))
    for slot in range(0, len(basis.layout.slots), 7):
        assert torch.equal(host.weight(genome, slot), device.weight(genome, slot))
        assert torch.equal(host.base_weight(slot), device.base_weight(slot))


@pytest.mark.usefixtures("streaming")
def test_a_device_holds_two_steps_of_what_the_host_keeps(family: Any, tmp_path: Path) -> None:
    made = family(dtype="bfloat16")
    basis = basis_of(made.base, made.full, tmp_path, rank=6)
    host = Materialiser(basis, weights="host")
    parameters = dict(load(made.base).named_parameters())
    assert isinstance(host._held, Streamed)
    sizes = list[int]()
    for genome in individuals(basis) * 2:
        host.write(genome, parameters)
        sizes.append(host._held.buffers)
    rows, columns, rank = 640 // 32, 48, 3 * 6
    base_and_experts, left, right = 4 * rows * 32 * 2, rows * rank * 4, rank * columns * 4
    aligned = 6 * 512  # at most, of as many tensors
    assert 0 < sizes[-1] <= 2 * (base_and_experts + left + right + aligned)
    assert sizes[-1] == sizes[len(sizes) // 2 - 1]  # no individual takes more than one before


@pytest.mark.usefixtures("streaming")
def test_what_ends_a_write_does_not_spoil_the_next(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = family(dtype="bfloat16")
    basis = basis_of(made.base, made.full[:2], tmp_path, rank=6)
    genome = individuals(basis)[2]
    host, read, calls = Materialiser(basis, weights="host"), FactorStore.__getitem__, list[str]()

    def failing(store: FactorStore, slot: str) -> Any:
        calls.append(slot)
        if len(calls) == 5:
            raise RunError("damaged")
        return read(store, slot)

    monkeypatch.setattr(FactorStore, "__getitem__", failing)
    with pytest.raises(RunError, match="damaged"):
        host.state(genome)
    assert same(host.state(genome), Materialiser(basis).state(genome))
    host.release()
    assert {key.kind for key in host._held._kept} == {"base"}
    assert same(host.state(genome), Materialiser(basis).state(genome))


def test_a_cpu_has_nothing_to_copy(family: Any, tmp_path: Path) -> None:
    made = family()
    basis = basis_of(made.base, made.full[:2], tmp_path)
    assert type(Materialiser(basis, weights="host")._held) is Held


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("options", [{"rank": 6}, {}], ids=str)
def test_a_gpu_makes_the_same_from_pinned_memory(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr("cqd_hub.genome.materialise._BLOCK_OF_OTHERS", 5 * 32)
    monkeypatch.setattr("cqd_hub.genome.materialise._ROWS_OF_OTHERS", 16)
    made = family(dtype="bfloat16")
    basis = basis_of(made.base, made.full, tmp_path, **options)
    device = Materialiser(basis, device="cuda")
    host = Materialiser(basis, device="cuda", weights="host")
    assert isinstance(host._held, Streamed)
    for genome in individuals(basis) * 2:
        for dtype in (torch.float32, torch.bfloat16):
            assert same(host.state(genome, dtype=dtype), device.state(genome, dtype=dtype))
    assert all(tensor.is_pinned() for tensor in host._held._kept.values())
