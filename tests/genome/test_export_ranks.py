"""Adapters with a wanted error, and those that vLLM takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from cqd_hub.errors import UserError
from cqd_hub.genome import Basis, Genome, Materialiser, crossover, mutate_expert
from cqd_hub.genome.export import export_adapter
from cqd_hub.genome.export.adapter import VLLM_RANKS
from cqd_hub.genome.export.ranks import Spectrum, smallest_ranks, smallest_uniform
from tests.genome.families import adapt, fine_tune, make_model
from tests.genome.tiny_models import basis_of, load


def mutant(basis: Basis) -> Genome:
    rng = np.random.default_rng(1)
    parents = [
        mutate_expert(
            Genome.of_expert(basis.hash, basis.layout, e), rng, basis=basis, expert=e, w_max=0.3
        )
        for e in range(2)
    ]
    return crossover(parents, np.array([0.6, 0.4]), basis)


def measured(basis: Basis, genome: Genome, base: Path, adapter: Path) -> float:
    """‖τ - adapter‖ / ‖τ‖ of the adapter as PEFT merges it."""
    state = Materialiser(basis).state(genome, dtype=torch.float32)
    zero = Materialiser(basis).state(Genome.of_base(basis.hash, basis.layout), dtype=torch.float32)
    model = PeftModel.from_pretrained(load(base, dtype=torch.float32), str(adapter))
    mine = model.merge_and_unload().state_dict()
    lost = sum(float((mine[n] - state[n]).square().sum()) for n in state)
    return (lost / sum(float((state[n] - zero[n]).square().sum()) for n in state)) ** 0.5


# Choosing ranks


def test_ranks_are_the_smallest_for_the_loss() -> None:
    spectra = [Spectrum(np.array([4.0, 2.0, 1.0]), 10), Spectrum(np.array([3.0, 0.5]), 10)]
    assert smallest_ranks(spectra, 0.0) == [3, 2]
    assert smallest_ranks(spectra, 0.25) == [3, 1]
    assert smallest_ranks(spectra, 1.25) == [2, 1]
    assert smallest_ranks(spectra, 5.24) == [2, 1]
    assert smallest_ranks(spectra, 14.25) == [1, 0]
    assert smallest_ranks(spectra, 100.0) == [0, 0]
    assert smallest_uniform(spectra, 5.3, (1, 2, 3)) == 1
    assert smallest_uniform(spectra, 5.2, (1, 2, 3)) == 2
    assert smallest_uniform(spectra, 0.9, (1, 2)) is None


def test_wide_directions_go_first() -> None:
    """Of two that hold the same, the one that takes more bytes is left out."""
    spectra = [Spectrum(np.array([2.0]), 10), Spectrum(np.array([2.0]), 30)]
    assert smallest_ranks(spectra, 4.0) == [1, 0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wanted_error(family: Any, tmp_path: Path, dtype: Any) -> None:
    made = family()
    basis = basis_of(made.base, made.full[:2], tmp_path / "cache", rank=6)
    genome, sizes = mutant(basis), []
    for error in (0.01, 0.1, 0.5):
        out = tmp_path / f"{dtype}-{error}"
        written = export_adapter(
            genome,
            basis,
            out,
            base_name=str(made.base),
            error=error,
            dtype=dtype,
            purpose="merge",
        )
        assert 0.8 * error < written.relative_error <= error
        assert written.relative_error == pytest.approx(
            measured(basis, genome, made.base, out), rel=1e-2
        )
        sizes.append(written.bytes)
    assert sizes == sorted(sizes, reverse=True)
    uniform = export_adapter(
        genome, basis, tmp_path / "uniform", base_name="b", rank=16, dtype=dtype, purpose="merge"
    )
    chosen = export_adapter(
        genome,
        basis,
        tmp_path / "chosen",
        base_name="b",
        error=uniform.relative_error,
        dtype=dtype,
        purpose="merge",
    )
    assert chosen.bytes < uniform.bytes


def test_an_error_below_rounding(family: Any, tmp_path: Path) -> None:
    made = family()
    basis = basis_of(made.base, made.full[:2], tmp_path / "cache", rank=6)
    with pytest.raises(UserError, match=r"error: cannot be reached \(allow more, use --dtype"):
        export_adapter(
            mutant(basis), basis, tmp_path / "out", base_name="b", error=1e-4, dtype="bfloat16"
        )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.partial").exists()


# vLLM


def accepted_by_vllm(folder: Path, base: Path, *, max_lora_rank: int) -> None:
    """What vLLM 0.32 asks of an adapter (its peft_helper, lora_model and lora config)."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] > 0
    assert isinstance(config["target_modules"], list | str)
    assert config["bias"] == "none"
    assert not config["modules_to_save"]
    for key in ("use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication"):
        assert not config.get(key)
    for key in ("use_bdlora", "use_qalora"):
        assert not config.get(key)
    assert not isinstance(config.get("init_lora_weights", True), str)
    ranks = [config["r"], *config["rank_pattern"].values()]
    assert max_lora_rank in VLLM_RANKS
    assert max(ranks) <= max_lora_rank
    linear = {
        name for name, part in load(base).named_modules() if isinstance(part, torch.nn.Linear)
    }
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        parts = name.split(".")
        assert parts[:2] == ["base_model", "model"]
        assert parts[-2] in ("lora_A", "lora_B")
        assert parts[-1] == "weight"
        found.setdefault(".".join(parts[2:-2]), {})[parts[-2]] = tensor
    assert set(found) <= linear
    assert "lm_head" not in found
    for pair in found.values():
        assert pair["lora_A"].shape[0] == pair["lora_B"].shape[1] == config["r"]


@pytest.mark.parametrize("name", ["qwen2", "mixtral"])
def test_vllm_takes_it(tmp_path: Path, name: str) -> None:
    base = make_model(name, tmp_path / "base", dtype=torch.bfloat16)
    experts = [
        fine_tune(base, tmp_path / "full", seed=1, dtype=torch.bfloat16),
        adapt(base, tmp_path / "lora", seed=2),
    ]
    basis = basis_of(base, experts, tmp_path / "cache", rank=6)
    genome, out = mutant(basis), tmp_path / "exact"
    written = export_adapter(genome, basis, out, base_name=str(base), consumer="vllm")
    assert written.rank in VLLM_RANKS
    accepted_by_vllm(out, base, max_lora_rank=written.rank)
    assert any("embed" in tensor for tensor in written.left_out)
    assert any("norm" in tensor for tensor in written.left_out)
    error = written.relative_error
    if name == "qwen2":  # PEFT and the base agree on every name
        assert error == pytest.approx(measured(basis, genome, base, out), rel=1e-2)
    small = export_adapter(
        genome, basis, tmp_path / "small", base_name=str(base), consumer="vllm", rank=8
    )
    accepted_by_vllm(tmp_path / "small", base, max_lora_rank=8)
    assert small.relative_error > error
    wanted = export_adapter(
        genome,
        basis,
        tmp_path / "wanted",
        base_name=str(base),
        consumer="vllm",
        error=small.relative_error * 1.001,
    )
    assert wanted.rank == 8
    with pytest.raises(UserError, match=r"error: cannot be reached: what is left out is 0\.\d"):
        export_adapter(genome, basis, tmp_path / "x", base_name="b", consumer="vllm", error=0.01)


def test_lora_experts_need_no_more_than_their_rank(family: Any, tmp_path: Path) -> None:
    made = family(tied=False)
    basis = basis_of(made.base, [made.lora[0], made.lora[2]], tmp_path / "cache")
    genome, out = mutant(basis), tmp_path / "out"
    written = export_adapter(genome, basis, out, base_name=str(made.base), consumer="vllm")
    assert written.rank == 8  # 4 of each
    accepted_by_vllm(out, made.base, max_lora_rank=written.rank)
    assert written.relative_error == pytest.approx(
        measured(basis, genome, made.base, out), rel=1e-2, abs=1e-6
    )
