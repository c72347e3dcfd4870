from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cqd_hub.genome import (
    Basis,
    Genome,
    Materialiser,
    crossover,
    mutate_child,
    mutate_expert,
    mutate_gaussian,
)
from cqd_hub.genome.materialise import Draws, normal
from cqd_hub.genome.scales import Scales
from tests.genome.tiny_models import basis_of, load


def individuals(basis: Basis) -> list[Genome]:
    """An expert, a mutant, and a grandchild using everything the basis allows."""
    experts = [Genome.of_expert(basis.hash, basis.layout, e) for e in range(2)]
    rng = np.random.default_rng(0)
    mutant = mutate_expert(experts[0], rng, basis=basis, expert=1, w_max=0.3)
    child = crossover([mutant, experts[1]], np.array([0.7, 0.3]), basis)
    if not basis.has_tails:
        child = mutate_child(child, rng, basis=basis, w_max=0.3)
    return [experts[0], mutant, mutate_gaussian(child, seed=3, deviation=0.01, basis=basis)]


@pytest.mark.parametrize("options", [{}, {"rank": 6}, {"rank": 6, "tail": "drop"}])
def test_every_write_starts_from_the_pristine_base(
    family: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    made = family(dtype="bfloat16")
    basis = basis_of(made.base, made.full[:2], tmp_path, **options)
    model, materialiser = load(made.base), Materialiser(basis)
    parameters = dict(model.named_parameters())
    first, second, third = individuals(basis)
    for genome in (third, second, first, third):
        materialiser.write(genome, parameters)
        fresh = Materialiser(basis).state(genome)
        assert all(torch.equal(parameters[name].data, fresh[name]) for name in fresh)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_half_precision_weights_are_near_the_rounded_exact_ones(
    family: Any, tmp_path: Path
) -> None:
    made = family(dtype="bfloat16")
    for options in ({}, {"rank": 6}, {"rank": 6, "tail": "drop"}):
        basis = basis_of(made.base, made.full[:2], tmp_path, **options)
        materialiser = Materialiser(basis)
        for genome in individuals(basis):
            half = materialiser.state(genome)
            exact = materialiser.state(genome, dtype=torch.float32)
            for name, truth in exact.items():
                unavoidable = (truth.bfloat16().float() - truth).norm()
                assert (half[name].float() - truth).norm() <= 1.05 * unavoidable, name


def test_without_bfloat16_hardware_the_exact_weights_are_rounded_once(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Materialiser, "_multiplies_bfloat16", False)
    made = family(dtype="bfloat16")
    basis = basis_of(made.base, made.full[:2], tmp_path, rank=6)
    materialiser = Materialiser(basis)
    for genome in individuals(basis):
        exact = materialiser.state(genome, dtype=torch.float32)
        for name, tensor in materialiser.state(genome).items():
            assert torch.equal(tensor, exact[name].bfloat16()), name


def test_blocks_do_not_show(family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = family()
    basis = basis_of(made.base, [made.full[0], made.lora[0]], tmp_path, rank=6)
    genome = individuals(basis)[2]
    whole = Materialiser(basis).state(genome)
    monkeypatch.setattr("cqd_hub.genome.materialise._BLOCK", 5 * 32)
    pieces = Materialiser(basis).state(genome)
    for name in whole:
        torch.testing.assert_close(pieces[name], whole[name], rtol=1e-5, atol=1e-6)


def test_one_tensor_equals_the_whole_state(family: Any, tmp_path: Path) -> None:
    made = family()
    basis = basis_of(made.base, made.lora[:2], tmp_path)
    materialiser, genome = Materialiser(basis), individuals(basis)[2]
    state = materialiser.state(genome)
    for index, slot in enumerate(basis.layout.slots):
        assert torch.equal(materialiser.weight(genome, index), state[slot.name])


@pytest.mark.slow
def test_noise_of_many_ancestors_takes_no_more_memory(tmp_path: Path) -> None:
    """Its draws are as large as the slot, and every Gaussian ancestor adds a seed."""
    done = subprocess.run(
        [sys.executable, "-c", MANY_SEEDS, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for growth in done.stdout.split():
        assert float(growth) < 1  # in slots; the draws held at once would be 6 more


MANY_SEEDS = textwrap.dedent("""
    import resource, sys
    from pathlib import Path
    import transformers
    from cqd_hub.genome import Genome, Materialiser, mutate_gaussian
    from cqd_hub.genome.export.deltas import Deltas
    from tests.genome.tiny_models import SHAPE, basis_of, make_lora

    folder = Path(sys.argv[1])
    # 38 MB: of what is smaller the C library keeps some when it is freed.
    config = transformers.LlamaConfig(**SHAPE | {"vocab_size": 300_000}, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "base")
    make_lora(folder / "base", folder / "lora", seed=1, target_modules=["q_proj"])
    basis = basis_of(folder / "base", [folder / "lora"], folder / "cache")
    slot = next(i for i, s in enumerate(basis.layout.slots) if "embed" in s.name)
    size = basis.base.weight(basis.layout.slots[slot]).nbytes

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

    def noisy(seeds):
        genome = Genome.of_base(basis.hash, basis.layout)
        for seed in range(seeds):
            genome = mutate_gaussian(genome, seed=seed, deviation=0.01, basis=basis)
        return genome

    materialiser = Materialiser(basis)
    for make in (
        lambda genome: materialiser.weight(genome, slot),
        lambda genome: Deltas(genome, basis).delta(slot),
    ):
        make(noisy(1))
        before = peak()
        make(noisy(7))
        print((peak() - before) / size)
""")


def test_noise_is_the_same_whole_and_in_blocks(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An odd number of draws at a time, too: the generator hands out halves of its words."""
    made = family()
    basis = basis_of(made.base, made.lora[:1], tmp_path)
    monkeypatch.setattr("cqd_hub.genome.materialise._BLOCK", 5 * 33)
    for index, slot in enumerate(basis.layout.slots):
        whole, parts = normal(7, index, slot.shape), Draws(7, index)
        rows = [parts.take((1, *slot.shape[1:])) for _ in range(slot.shape[0])]
        assert torch.equal(torch.cat(rows), whole)
    genome = Genome.of_base(basis.hash, basis.layout)
    genome = mutate_gaussian(genome, seed=7, deviation=0.25, basis=basis)
    state = Materialiser(basis).state(genome)
    for index, slot in enumerate(basis.layout.slots):
        wanted = basis.base.weight(slot)
        if slot.is_matrix:
            wanted = torch.add(wanted, normal(7, index, slot.shape), alpha=0.25)
        assert torch.equal(state[slot.name], wanted)


def test_a_genome_is_split_once_for_all_its_slots(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both parents of a merge in turn: splitting takes longer than a small slot."""
    made = family()
    materialiser = Materialiser(basis_of(made.base, made.full[:2], tmp_path))
    genomes = individuals(materialiser.basis)[:2]
    wanted = [materialiser.state(genome) for genome in genomes]
    split, calls = Scales.split, list[Genome]()

    def counted(scales: Scales, genome: Genome) -> Any:
        calls.append(genome)
        return split(scales, genome)

    monkeypatch.setattr(Scales, "split", counted)
    fresh = Materialiser(materialiser.basis)
    for index, slot in enumerate(fresh.basis.layout.slots):
        for genome, state in zip(genomes, wanted, strict=True):
            assert torch.equal(fresh.weight(genome, index), state[slot.name])
    assert len(calls) == 2
    for number in range(20):  # and not kept for ever
        other = Genome(genomes[0].basis, genomes[0].coefficients * np.float32(number))
        fresh.weight(other, 0)
    assert len(fresh._splits) <= 4
