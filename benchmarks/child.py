"""What one evaluable child costs: checkpoint arithmetic, mergekit, and genomes written in place.

    python benchmarks/child.py --shape quickstart --repeats 7
    python benchmarks/child.py --shape 135m --repeats 5

Random weights; one thread; process CPU seconds, medians over interleaved repetitions. Path (a) is
the released CycleQD's way, written from the paper's formulas: two parents from disk, bfloat16
arithmetic, full-rank SVD mutation from precomputed factors, save, reload.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from cqd_hub.genome import (
    Basis,
    Genome,
    Materialiser,
    build_basis,
    crossover,
    crossover_weights,
    mutate_expert,
    open_models,
)
from cqd_hub.randomness import generator

SHAPES = {
    "quickstart": {
        "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 320, "vocab_size": 512,
    },
    "135m": {
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
    },
}  # fmt: skip
EXPERTS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=SHAPES, default="quickstart")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "cqd-hub-benchmark"
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    folder = arguments.folder / arguments.shape
    make_models(folder, SHAPES[arguments.shape])
    report(folder, arguments.repeats)


def make_models(folder: Path, shape: dict[str, int]) -> None:
    """A base, full fine-tunes (every tensor moved by about 1 %) and LoRA experts, at random."""
    if (folder / "done").exists():
        return
    torch.manual_seed(0)
    config = LlamaConfig(**shape, tie_word_embeddings=True)
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(folder / "base")
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for number in range(EXPERTS):
        for name, tensor in model.named_parameters():
            tensor.data = base[name] + 0.01 * base[name].float().std() * torch.randn_like(tensor)
            tensor.data = tensor.data.bfloat16()
        model.save_pretrained(folder / f"expert{number}")
        for rank in (32, 64):
            make_lora(folder / f"lora{rank}-{number}", base, rank)
    (folder / "done").touch()


def make_lora(folder: Path, base: dict[str, torch.Tensor], rank: int) -> None:
    tensors = {}
    for name, weight in base.items():
        if name.endswith("_proj.weight"):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, weight.shape[1]) * 0.02
            tensors[f"{module}.lora_B.weight"] = torch.randn(weight.shape[0], rank) * 0.02
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def load(path: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)


class CheckpointPath:
    """(a) Parents from disk, bfloat16 arithmetic, full-rank SVD mutation, save, reload."""

    def __init__(self, folder: Path, basis: Basis) -> None:
        self.folder, self.model = folder, load(folder / "base")
        self.base = {name: t.clone() for name, t in self.model.state_dict().items()}
        self.svd = {
            slot: (f.up.bfloat16(), f.down.bfloat16()) for slot, f in basis.factors[0].items()
        }

    @torch.no_grad()
    def __call__(self) -> None:
        parents = [load(self.folder / f"expert{i}").state_dict() for i in (0, 1)]
        w1, w2 = torch.normal(1.0, 0.03, (2,)).tolist()
        child = {}
        for name, base in self.base.items():
            deltas = [parent[name] - base for parent in parents]
            child[name] = base + (w1 / (w1 + w2)) * deltas[0] + (w2 / (w1 + w2)) * deltas[1]
        for name, (up, down) in self.svd.items():
            w = (torch.rand(up.shape[1]) * 0.3).bfloat16()
            child[name] += (up * w) @ down
        child["lm_head.weight"] = child["model.embed_tokens.weight"]
        self.model.load_state_dict(child)
        self.model.save_pretrained(self.folder / "child")
        load(self.folder / "child")


class MergekitPath:
    """(b) mergekit's crossover of two parents (no mutation), to disk, then reload."""

    def __init__(self, folder: Path) -> None:
        from mergekit.config import MergeConfiguration

        self.folder = folder
        models = [
            {"model": str(folder / f"expert{i}"), "parameters": {"weight": 0.5}} for i in (0, 1)
        ]
        self.config = MergeConfiguration.model_validate(
            {
                "merge_method": "task_arithmetic", "base_model": str(folder / "base"),
                "models": models, "parameters": {"normalize": False},
                "dtype": "float32", "out_dtype": "bfloat16",
            }
        )  # fmt: skip

    def __call__(self) -> None:
        from mergekit.io.tasks import LoaderCache
        from mergekit.merge import MergeOptions, run_merge

        LoaderCache().loaders.clear()
        options = MergeOptions(write_model_card=False, copy_tokenizer=False, quiet=True)
        run_merge(self.config, str(self.folder / "merged"), options)
        load(self.folder / "merged")


class GenomePath:
    """(c) Crossover, mutation and writing into the resident model."""

    def __init__(self, basis: Basis, model: LlamaForCausalLM, *, generations: int) -> None:
        self.basis, self.materialiser = basis, Materialiser(basis)
        state = model.state_dict()
        self.parameters = {slot.name: state[slot.name] for slot in basis.layout.slots}
        experts = len(basis.experts)
        self.parents = [Genome.of_expert(basis.hash, basis.layout, i) for i in range(experts)]
        for step in range(generations):
            self.parents = [self.child(step * 9 + i, expert=i) for i in range(experts)]
        self.child_bytes = len(self.child(0, expert=0).to_bytes())
        self()

    def child(self, index: int, *, expert: int) -> Genome:
        rng = generator(0, index, "benchmark")
        first, second = rng.choice(len(self.parents), 2, replace=False)
        layout = self.basis.layout
        shares = crossover_weights(rng, groups=layout.groups("model"), mean=1.0, deviation=0.03)
        crossed = crossover([self.parents[first], self.parents[second]], shares, self.basis)
        return mutate_expert(crossed, rng, basis=self.basis, expert=expert, w_max=0.3)

    def __call__(self) -> None:
        self.materialiser.write(self.child(1, expert=0), self.parameters)


def copied_bytes_per_second() -> float:
    """Read plus written bytes per CPU second of a large copy."""
    source, target = torch.ones(2**26), torch.empty(2**26)
    target.copy_(source)
    start = time.process_time()
    for _ in range(5):
        target.copy_(source)
    return 5 * 2 * source.nbytes / (time.process_time() - start)


def report(folder: Path, repeats: int) -> None:
    kinds = ("expert", "lora32-", "lora64-")
    folders = [folder / f"{kind}{i}" for kind in kinds for i in range(EXPERTS)]
    base, experts = open_models(folder / "base", folders)
    full, lora = experts[:EXPERTS], {32: experts[EXPERTS:-EXPERTS], 64: experts[-EXPERTS:]}
    cache = folder / "cache"

    def basis(experts: list, **options: object) -> Basis:
        return build_basis(base, experts, cache=cache, progress=print, **options)

    model = load(folder / "base")
    dense = basis(full)
    total = max(sum(row) for row in dense.layout.ranks)
    ours = {
        "(c) LoRA, R=64 (2x32)": GenomePath(basis(lora[32][:2]), model, generations=3),
        "(c) truncated, R=64 (2x32)": GenomePath(
            basis(full[:2], rank=32, tail="drop"), model, generations=3
        ),
        "(c) tail-tied, R=64 (2x32)": GenomePath(basis(full[:2], rank=32), model, generations=3),
        "(c) LoRA, R=192 (3x64)": GenomePath(basis(lora[64]), model, generations=3),
        "(c) tail-tied, R=192 (3x64)": GenomePath(basis(full, rank=64), model, generations=3),
        f"(c) full rank, R={total}, 1 of 3 mutated": GenomePath(dense, model, generations=0),
        f"(c) full rank, R={total}, all mutated": GenomePath(dense, model, generations=3),
    }
    paths: dict[str, Callable[[], None]] = {
        "(a) checkpoints, SVD mutation": CheckpointPath(folder, dense),
        "(b) mergekit, crossover only": MergekitPath(folder),
        **ours,
    }
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for repeat in range(repeats + 1):
        for name, path in paths.items():
            start = time.process_time()
            path()
            if repeat:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    checkpoint = sum(file.stat().st_size for file in (folder / "child").glob("*.safetensors"))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    reference = median["(a) checkpoints, SVD mutation"]
    parameters = sum(tensor.nbytes for tensor in ours["(c) LoRA, R=64 (2x32)"].parameters.values())
    bandwidth = copied_bytes_per_second()
    print(f"{'path':42}{'CPU s':>9}{'range':>16}{'(a)/this':>10}{'bytes':>13}{'smaller':>9}")
    for name, value in median.items():
        size = ours[name].child_bytes if name in ours else checkpoint
        spread = f"{min(seconds[name]):.3f}-{max(seconds[name]):.3f}"
        print(
            f"{name:42}{value:9.4f}{spread:>16}{reference / value:10.1f}{size:13,}"
            f"{checkpoint / size:9.0f}"
        )
    print(
        f"Limit: copying the model once (read and write 2 x {parameters / 1e6:.1f} MB at "
        f"{bandwidth / 1e9:.1f} GB/s) takes {2 * parameters / bandwidth:.4f} s."
    )


if __name__ == "__main__":
    main()
