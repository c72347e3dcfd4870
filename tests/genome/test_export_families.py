"""What `test_families` does not ask of families: merged and partial adapters, buffers, copies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from cqd_hub.errors import UserError
from cqd_hub.genome import (
    Basis,
    Genome,
    Materialiser,
    crossover,
    crossover_weights,
    mutate_expert,
    mutate_gaussian,
)
from cqd_hub.genome.export import export_adapter, export_checkpoint, export_mergekit
from cqd_hub.genome.export.peft import Site, lora_config, lora_tensors
from cqd_hub.genome.models.experts import LowRank
from tests.genome.families import adapt, fine_tune, make_model
from tests.genome.run_mergekit import merged
from tests.genome.tiny_models import basis_of, edit_tensors, load

PROMPT = torch.arange(2, 30)[None]
# What PEFT's LoRA has no exact place for: biases of experts, attention sinks, grouped convolutions.
HOMELESS = {"gpt_oss": ("bias", "sinks"), "lfm2": ("conv.conv",)}


class Made(NamedTuple):
    base: Path
    basis: Basis
    genome: Genome
    checkpoint: Path
    logits: torch.Tensor


Make = Callable[[str], Made]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A full fine-tune and an adapter, mutated and crossed per matrix, exported in fp32."""
    found: dict[str, Made] = {}

    def of(name: str) -> Made:
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            base = make_model(name, folder / "base")
            experts = [
                fine_tune(base, folder / "full", seed=1, dtype=torch.float32),
                adapt(base, folder / "lora", seed=2),
            ]
            basis = basis_of(base, experts, folder / "cache", rank=6)
            genome = mutant(basis)
            out = folder / "checkpoint"
            export_checkpoint(genome, Materialiser(basis), out, dtype="float32", shard_size="20KB")
            found[name] = Made(base, basis, genome, out, logits(load(out)))
        return found[name]

    return of


def mutant(basis: Basis) -> Genome:
    rng = np.random.default_rng(1)
    parents = [
        mutate_expert(
            Genome.of_expert(basis.hash, basis.layout, e), rng, basis=basis, expert=e, w_max=0.3
        )
        for e in range(2)
    ]
    groups = basis.layout.groups("matrix")
    shares = crossover_weights(rng, groups=groups, mean=1.0, deviation=0.3)
    return crossover(parents, shares, basis)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(PROMPT).logits


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "gpt2", "gpt_neox", "qwen3_moe", "mixtral"])
def test_exact_adapter_merged(make: Make, tmp_path: Path, name: str) -> None:
    """Biases, norms that add 1, Conv1D beside linear layers, fused projections, mixtures."""
    made, out = make(name), tmp_path / "adapter"
    written = export_adapter(
        made.genome, made.basis, out, base_name=str(made.base), purpose="merge"
    )
    assert written.relative_error == 0
    assert not written.left_out
    model = PeftModel.from_pretrained(load(made.base), str(out)).merge_and_unload()
    assert distance(logits(model), made.logits) <= 1e-5
    assert distance(logits(load(made.base)), made.logits) > 0.1


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("wish", [{"rank": 3}, {"error": 0.2}, {"error": 0.05}])
def test_truncated_adapter_of_a_mixture(
    make: Make, tmp_path: Path, name: str, wish: dict[str, Any]
) -> None:
    made, out = make(name), tmp_path / "adapter"
    written = export_adapter(made.genome, made.basis, out, base_name=str(made.base), **wish)
    assert written.relative_error <= wish.get("error", 1)
    assert written.relative_error > 0.8 * wish.get("error", 0)
    assert written.relative_error == pytest.approx(measured(made, out), rel=1e-2)


def measured(made: Made, adapter: Path) -> float:
    """‖τ - adapter‖ / ‖τ‖ of the adapter as PEFT merges it."""
    model = PeftModel.from_pretrained(load(made.base), str(adapter)).merge_and_unload()
    base, whole = load(made.base).state_dict(), load(made.checkpoint).state_dict()
    mine, names = model.state_dict(), {id(t): n for n, t in model.named_parameters()}.values()
    lost = sum(float((mine[n] - whole[n]).square().sum()) for n in names)
    return (lost / sum(float((base[n] - whole[n]).square().sum()) for n in names)) ** 0.5


@pytest.mark.parametrize("name", HOMELESS)
def test_adapter_of_what_has_no_place_in_one(make: Make, tmp_path: Path, name: str) -> None:
    made = make(name)
    with pytest.raises(UserError, match=r" has no place for it .*export a checkpoint"):
        export_adapter(made.genome, made.basis, tmp_path / "out", base_name=str(made.base))
    assert not list(tmp_path.iterdir())
    out = tmp_path / "adapter"
    written = export_adapter(
        made.genome, made.basis, out, base_name=str(made.base), partial=True, purpose="merge"
    )
    assert written.relative_error == pytest.approx(measured(made, out), rel=1e-3)
    left = {name.partition("[")[0] for name in written.left_out}
    assert left
    assert all(any(part in tensor for part in HOMELESS[name]) for tensor in left)


@pytest.mark.parametrize("name", ["qwen2", "mixtral"])
def test_noise_and_weights_within_a_mixture(make: Make, tmp_path: Path, name: str) -> None:
    """Noise makes every matrix dense: a checkpoint holds it in fewer bytes than an adapter.

    The mixture's shares differ between the experts that mergekit joins in one tensor.
    """
    made = make(name)
    genome = mutate_gaussian(made.genome, seed=3, deviation=0.01, basis=made.basis)
    recipe = export_mergekit(genome, made.basis, tmp_path / "recipe", out_dtype="float32")
    assert (tmp_path / "recipe" / "mutation" / "config.json").exists()
    export_checkpoint(genome, Materialiser(made.basis), tmp_path / "truth", dtype="float32")
    state, expected = merged(recipe, tmp_path), load(tmp_path / "truth").state_dict()
    for key, tensor in expected.items():
        assert distance(state[key], tensor) <= 5e-7, key


def test_buffers_and_copies_of_tied_weights_are_kept(tmp_path: Path) -> None:
    """GPT-2 files hold masks, and some hold the head beside the embedding it is tied to."""
    base = make_model("gpt2", tmp_path / "base")
    file = base / "model.safetensors"
    tensors = load_file(file)
    mask = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
    tensors["transformer.h.0.attn.bias"] = mask
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})
    full = fine_tune(base, tmp_path / "full", seed=1, dtype=torch.float32)
    basis = basis_of(base, [full], tmp_path / "cache")
    genome = Genome.of_expert(basis.hash, basis.layout, 0)
    export_checkpoint(genome, Materialiser(basis), tmp_path / "out")
    written = stored(tmp_path / "out")
    assert written.keys() == tensors.keys()
    assert torch.equal(written["transformer.h.0.attn.bias"], mask)
    assert torch.equal(written["lm_head.weight"], written["transformer.wte.weight"])
    assert not torch.equal(written["lm_head.weight"], tensors["lm_head.weight"])
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info


def test_buffers_of_any_dtype_are_copied_as_they_lie(tmp_path: Path) -> None:
    """Also those that torch itself cannot read; odd sizes between wide numbers."""
    base = make_model("llama", tmp_path / "base")
    full = fine_tune(base, tmp_path / "full", seed=1, dtype=torch.float32)
    extra = {
        "half": torch.arange(5).to(torch.uint16),
        "whole": torch.arange(3).to(torch.uint32),
        "long": torch.tensor([1, -1, 1 << 62]).to(torch.uint64),
        "odd": torch.arange(3, dtype=torch.uint8),
        "none": torch.zeros(0, 4, dtype=torch.uint16),
        "masked": torch.full((2,), -float("inf"), dtype=torch.complex64),
    }
    for folder in (base, full):
        edit_tensors(folder / "model.safetensors", lambda tensors: tensors | extra)
    basis = basis_of(base, [full], tmp_path / "cache")
    genome = Genome.of_expert(basis.hash, basis.layout, 0)
    for dtype in (None, "bfloat16"):
        size = export_checkpoint(genome, Materialiser(basis), tmp_path / f"{dtype}", dtype=dtype)
        written = stored(tmp_path / f"{dtype}")
        assert size == sum(tensor.nbytes for tensor in written.values())
        for name, tensor in extra.items():
            assert written[name].dtype == tensor.dtype
            assert torch.equal(written[name], tensor)
        for name, tensor in stored(full).items():
            kind = getattr(torch, dtype) if dtype and name not in extra else tensor.dtype
            assert torch.equal(written[name], tensor.to(kind)), name


def test_an_unknown_architecture_keeps_its_names(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    for folder in (base, fine_tune(base, tmp_path / "full", seed=1, dtype=torch.float32)):
        config = (folder / "config.json").read_text()
        config = config.replace("LlamaForCausalLM", "OtherForCausalLM")
        (folder / "config.json").write_text(config.replace('"llama"', '"other"'))
    basis = basis_of(base, [tmp_path / "full"], tmp_path / "cache")
    genome = Genome.of_expert(basis.hash, basis.layout, 0)
    export_checkpoint(genome, Materialiser(basis), tmp_path / "out")
    written = stored(tmp_path / "out")
    assert written.keys() == stored(base).keys()
    assert all(torch.equal(written[n], t) for n, t in stored(tmp_path / "full").items())
    export_adapter(genome, basis, tmp_path / "adapter", base_name=str(base))
    for folder in (base, tmp_path / "full"):
        config = (folder / "config.json").read_text()
        config = config.replace("OtherForCausalLM", "LlamaForCausalLM")
        (folder / "config.json").write_text(config.replace('"other"', '"llama"'))
    model = PeftModel.from_pretrained(load(base), str(tmp_path / "adapter"))
    assert isinstance(load(base), LlamaForCausalLM)
    assert distance(logits(model), logits(load(tmp_path / "full"))) <= 1e-5


@pytest.mark.parametrize("kernel", [(3,), (3, 2)])
def test_convolutions_in_pefts_layout(tmp_path: Path, kernel: tuple[int, ...]) -> None:
    """No family has a convolution without groups, so PEFT is asked on a module of its own."""
    module = torch.nn.Module()
    module.patch = (torch.nn.Conv1d, torch.nn.Conv2d)[len(kernel) - 1](5, 7, kernel, bias=False)
    columns = 5 * int(np.prod(kernel))
    product = LowRank(torch.randn(7, 2), torch.randn(2, columns))
    where = Site("patch", "convolution", (7, columns), kernel=(5, *kernel))
    wanted = module.patch.weight.detach() + (product.up @ product.down).reshape(7, 5, *kernel)
    config = lora_config({where: 2}, base_name="b", purpose="merge")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {n: t.contiguous() for n, t in lora_tensors(where, [product], "merge").items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    merged_ = PeftModel(module, LoraConfig.from_pretrained(str(tmp_path)))
    report = merged_.load_adapter(str(tmp_path), "default")
    assert not report.unexpected_keys
    assert torch.allclose(merged_.merge_and_unload().patch.weight, wanted, atol=1e-5)
