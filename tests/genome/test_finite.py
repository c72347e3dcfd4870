"""NaN in the base, and weights beyond what float16 holds, wherever weights are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cqd_hub.errors import UserError
from cqd_hub.genome import Basis, Genome, Materialiser
from cqd_hub.genome.export import export_adapter, export_checkpoint
from cqd_hub.genome.merge import Merge
from cqd_hub.genome.merge.store import MergeStore
from tests.genome.tiny_models import basis_of, edit_tensors, make_base, make_full, make_lora

UP = "model.layers.0.mlp.up_proj.weight"
OVERFLOW = rf"^{UP}.*: holds a number that float16 cannot hold \(use bfloat16 or float32\)$"


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.self_attn.q_proj.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_base_that_is_not_finite_where_no_expert_is_read(
    tmp_path: Path, name: str, value: float, dtype: str
) -> None:
    """An adapter's factors never read the base, neither do slots that it leaves alone."""
    base = make_base(tmp_path / "base", dtype=dtype)
    lora = make_lora(base, tmp_path / "lora", seed=1, target_modules=["q_proj"])

    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[name].view(-1)[-1] = value
        return tensors

    edit_tensors(base / "model.safetensors", spoil)
    basis = basis_of(base, [lora], tmp_path / "cache")
    with pytest.raises(UserError, match=rf"base: {name} holds NaN or infinity \(save or") as info:
        Materialiser(basis)
    assert "\n" not in str(info.value)


def large(factor: float) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        up = tensors[UP].float()
        return tensors | {UP: (up * factor / up.abs().max()).to(tensors[UP].dtype)}

    return change


@pytest.fixture(scope="module")
def basis(tmp_path_factory: pytest.TempPathFactory) -> Basis:
    """A base near float16's largest number, 65504, and an expert beyond it."""
    folder = tmp_path_factory.mktemp("large")
    base = make_base(folder / "base")
    edit_tensors(base / "model.safetensors", large(6e4))
    expert = make_full(base, folder / "expert", seed=1)
    edit_tensors(expert / "model.safetensors", large(7e4))
    return basis_of(base, [expert], folder / "cache")


def individuals(basis: Basis) -> tuple[Genome, Genome]:
    base = Genome.of_base(basis.hash, basis.layout)
    return base, Genome.of_expert(basis.hash, basis.layout, 0)


def test_an_individual_beyond_a_half_precision_model_is_not_scored(basis: Basis) -> None:
    base, expert = individuals(basis)
    materialiser = Materialiser(basis)
    resident = materialiser.state(base, dtype=torch.float16)
    with pytest.raises(UserError, match=OVERFLOW) as info:
        materialiser.write(expert, resident)
    assert f"individual {expert.hash[:12]}" in str(info.value)
    materialiser.write(base, resident)
    for dtype in (torch.bfloat16, torch.float32):
        state = materialiser.state(expert, dtype=dtype)
        assert all(tensor.isfinite().all() for tensor in state.values())


def test_a_checkpoint_beyond_half_precision(basis: Basis, tmp_path: Path) -> None:
    base, expert = individuals(basis)
    with pytest.raises(UserError, match=OVERFLOW):
        export_checkpoint(expert, Materialiser(basis), tmp_path / "out", dtype="float16")
    assert not list(tmp_path.iterdir())
    export_checkpoint(expert, Materialiser(basis), tmp_path / "b", dtype="bfloat16")
    export_checkpoint(base, Materialiser(basis), tmp_path / "h", dtype="float16")


@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"error": 0.3}])
def test_an_adapter_beyond_half_precision(
    basis: Basis, tmp_path: Path, options: dict[str, Any]
) -> None:
    _, expert = individuals(basis)
    far = Genome(expert.basis, expert.coefficients * 30)
    name = UP.removesuffix(".weight")

    def export(dtype: Any, to: Path) -> Any:
        return export_adapter(far, basis, to, base_name="b", dtype=dtype, **options)

    with pytest.raises(UserError, match=rf"{name}: holds a number that float16 cannot hold"):
        export("float16", tmp_path / "out")
    assert not list(tmp_path.iterdir())
    made = export("bfloat16", tmp_path / "b")
    assert np.isfinite(made.relative_error)
    assert made.relative_error <= options.get("error", 1.0)


def test_a_merge_beyond_the_bases_dtype(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype="float16")
    edit_tensors(base / "model.safetensors", large(5e4))
    paths = [make_full(base, tmp_path / f"full{seed}", seed=seed) for seed in (1, 2)]
    for path in paths:
        edit_tensors(path / "model.safetensors", large(6e4))
    basis = basis_of(base, paths, tmp_path / "cache")
    experts = [Genome.of_expert(basis.hash, basis.layout, e) for e in range(2)]
    known = {expert.hash: expert for expert in experts}
    store = MergeStore(tmp_path / "merges", budget=10**9, genome_of=known.__getitem__)
    materialiser = Materialiser(basis, merges=store)

    def merge(weight: float) -> Merge:
        return Merge.make(
            "task_arithmetic", parents=[*known], seed=1, parameters={"weight": [weight, weight]}
        )

    with pytest.raises(UserError, match=OVERFLOW) as info:
        store.ensure([merge(1.0)])
    assert f"merge {merge(1.0).id[:12]}" in str(info.value)
    assert not list((tmp_path / "merges").iterdir())
    good = Genome.of_merge(basis.hash, basis.layout, merge(0.1))
    assert materialiser.state(good)[UP].isfinite().all()
