"""Decode and prefill of N individuals: one after the other, side by side, and PEFT's mixed batch.

    python benchmarks/engine.py --shape 135m --points 1x16 8x2 8x16 32x2
    python benchmarks/engine.py --shape quickstart --dtype float32

A point is N individuals x rows each. Random weights, two LoRA experts (R in all), answers of a
fixed length; wall seconds, medians over interleaved repetitions: keep the machine free of other
work, or measure ``--threads 1 --clock cpu``. The sequential time includes writing each individual
into the model. ``limit`` is what the arithmetic and one reading of the weights need at the speeds
measured on this machine.
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
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from cqd_hub.evaluation.engine import Candidate, Generate
from cqd_hub.evaluation.engine._decoding import generate
from cqd_hub.evaluation.engine._slots import SlotLoop
from cqd_hub.evaluation.engine.population import PopulationEngine
from cqd_hub.evaluation.engine.sequential import SequentialEngine
from cqd_hub.genome import Basis, Genome, build_basis, combine, open_models

SHAPES = {
    "tiny": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512,
    },
    "quickstart": {
        "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 320, "vocab_size": 512,
    },
    "135m": {
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
    },
    "0.5b": {
        "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936,
    },
}  # fmt: skip
EXPERTS = 2
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=SHAPES, default="quickstart")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rank", type=int, default=64, help="R: of both experts together")
    parser.add_argument("--points", nargs="+", default=["1x2", "8x2", "32x2", "8x16", "8x64"])
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--tokens", type=int, default=8, help="decoding steps")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--no-peft", action="store_true")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "cqd-hub-benchmark-engine"
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    clock = CLOCKS[arguments.clock]
    dtype = getattr(torch, arguments.dtype)
    folder = arguments.folder / f"{arguments.shape}-{arguments.rank}"
    basis = make_basis(folder, SHAPES[arguments.shape], arguments.rank)
    limits = speeds(dtype, clock)
    print(
        f"{arguments.shape}, {arguments.dtype}, R={arguments.rank}, prompts of {arguments.prompt}: "
        f"{limits[0] / 1e9:.0f} Gflop/s, {limits[1] / 1e9:.1f} GB/s"
        f" ({arguments.clock}, {arguments.threads} threads)"
    )
    print(
        f"{'N x rows':>10}{'':10}{'alone':>10}{'together':>10}{'PEFT':>10}"
        f"{'alone/t.':>10}{'PEFT/t.':>10}{'of limit':>10}"
    )
    alone = SequentialEngine(basis, device="cpu", dtype=dtype, batch_tokens=1 << 20)
    together = PopulationEngine(basis, device="cpu", dtype=dtype, batch_tokens=1 << 20)
    for point in arguments.points:
        people, rows = map(int, point.split("x"))
        measure(basis, alone, together, people, rows, limits, arguments)


def make_basis(folder: Path, shape: dict[str, int], rank: int) -> Basis:
    """A base and LoRA experts at random."""
    if not (folder / "done").exists():
        torch.manual_seed(0)
        config = LlamaConfig(**shape, tie_word_embeddings=True, max_position_embeddings=8192)
        model = LlamaForCausalLM(config).bfloat16()
        model.save_pretrained(folder / "base")
        for number in range(EXPERTS):
            make_lora(folder / f"lora{number}", model.state_dict(), rank // EXPERTS)
        vocabulary = {f"<{i}>": i for i in range(shape["vocab_size"])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<0>"))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<0>").save_pretrained(
            folder / "base"
        )
        (folder / "done").touch()
    experts = [folder / f"lora{number}" for number in range(EXPERTS)]
    return build_basis(*open_models(folder / "base", experts), cache=folder / "cache")


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


def individuals(basis: Basis, count: int) -> list[Candidate]:
    rng = np.random.default_rng(0)
    experts = [Genome.of_expert(basis.hash, basis.layout, n) for n in range(EXPERTS)]
    found = []
    for number in range(count):
        genome = combine(experts, rng.uniform(0.2, 0.8, EXPERTS), basis.layout)
        spread = rng.uniform(0, 0.3, basis.layout.size).astype(np.float32)
        found.append(Candidate(number, Genome(basis.hash, genome.coefficients + spread)))
    return found


class Mixed:
    """PEFT's mixed batch: one adapter per individual, chosen row by row."""

    def __init__(self, basis: Basis, people: list[Candidate], dtype: torch.dtype) -> None:
        model = LlamaForCausalLM.from_pretrained(basis.base.checkpoint.path, dtype=dtype)
        rank = sum(basis.layout.ranks[_projection(basis)])
        settings = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=rank,
                              target_modules="all-linear")  # fmt: skip
        self.model: Any = get_peft_model(model, settings, adapter_name="0")
        for person in people[1:]:
            self.model.add_adapter(str(person.id), settings)
        self.model.requires_grad_(False).eval().to(dtype)
        for person in people:
            self._fill(basis, person)
        self.rows: list[str] = []
        self.device, self.config, self.dtype = model.device, model.config, dtype

    def _fill(self, basis: Basis, person: Candidate) -> None:
        modules: PeftModel = self.model
        for number, slot in enumerate(basis.layout.slots):
            if not slot.name.endswith("_proj.weight"):
                continue
            module = modules.get_submodule(f"base_model.model.{slot.name.removesuffix('.weight')}")
            segments = basis.layout.segments[number]
            scales = person.genome.coefficients[segments[0].start : segments[-1].stop]
            factors = [store[slot.name] for store in basis.factors]
            up = torch.cat([f.up for f in factors], 1) * torch.from_numpy(scales)
            module.lora_A[str(person.id)].weight.data.copy_(torch.cat([f.down for f in factors]))
            module.lora_B[str(person.id)].weight.data.copy_(up)

    def __call__(self, **options: Any) -> Any:
        return self.model(**options, adapter_names=self.rows)


def _projection(basis: Basis) -> int:
    return next(n for n, s in enumerate(basis.layout.slots) if s.name.endswith("q_proj.weight"))


def measure(
    basis: Basis,
    alone: SequentialEngine,
    together: PopulationEngine,
    count: int,
    rows: int,
    limits: tuple[float, float],
    arguments: argparse.Namespace,
) -> None:
    clock = CLOCKS[arguments.clock]
    people = individuals(basis, count)
    rng = np.random.default_rng(1)
    vocabulary = alone._ids
    prompts = [tuple(rng.integers(0, vocabulary, arguments.prompt).tolist()) for _ in range(rows)]

    def loop(engine: SequentialEngine) -> SlotLoop[Any]:
        assign = engine._people.assign if isinstance(engine, PopulationEngine) else None
        options = {"assign": assign} if assign else {}
        return SlotLoop(
            engine._model, engine._tokenizer, frozenset(), batch_tokens=1 << 20, **options
        )

    def finish(one: SlotLoop[Any]) -> None:
        while len(one):
            one.advance()

    def sequential(tokens: int) -> None:
        for person in people:
            alone._become(person)
            one = loop(alone)
            for prompt in prompts:
                one.add(None, Generate(prompt, tokens))
            finish(one)

    def population(tokens: int) -> None:
        for key in together._people.present():
            together._people.remove(key)
        one = loop(together)
        for person in people:
            together._people.add(person.id, person.genome)
            for prompt in prompts:
                one.add(None, Generate(prompt, tokens), person.id)
        finish(one)

    ways: dict[str, Callable[[int], None]] = {"alone": sequential, "together": population}
    together._become(together._base)
    together._people.active = True
    if not arguments.no_peft:
        mixed = Mixed(basis, people, alone._model.dtype)
        names = [str(person.id) for person in people for _ in prompts]

        def assign(numbers: Any) -> None:
            mixed.rows = [names[number] for number in numbers]

        def peft(tokens: int) -> None:
            requests = [Generate(prompt, tokens) for _ in people for prompt in prompts]
            generate(mixed, alone._tokenizer, requests, frozenset(), assign=assign)  # type: ignore

        ways["PEFT"] = peft
    kinds = {"prefill": 1, "decode": 1 + arguments.tokens}
    spent: dict[tuple[str, str], list[float]] = {}
    for repeat in range(arguments.repeats + 1):
        for name, way in ways.items():
            for kind, tokens in kinds.items():
                start = clock()
                way(tokens)
                if repeat or arguments.repeats == 0:  # the first round warms up
                    spent.setdefault((kind, name), []).append(clock() - start)
    middle = {key: statistics.median(values) for key, values in spent.items()}
    for kind in kinds:
        taken = {
            name: (
                middle[kind, name]
                if kind == "prefill"
                else (middle[kind, name] - middle["prefill", name]) / arguments.tokens
            )
            for name in ways
        }
        width = arguments.prompt if kind == "prefill" else 1
        least = limit(alone, basis, count * rows, width, limits)
        ours, theirs = taken["together"], taken.get("PEFT", float("nan"))
        print(
            f"{count:>5} x {rows:<3}{kind:>9}{taken['alone']:>10.3f}{ours:>10.3f}{theirs:>10.3f}"
            f"{taken['alone'] / ours:>10.2f}{theirs / ours:>10.2f}{least / ours:>10.0%}",
            flush=True,
        )


def limit(
    engine: SequentialEngine, basis: Basis, rows: int, width: int, limits: tuple[float, float]
) -> float:
    """Seconds that one pass of all rows cannot go below."""
    weights = [slot.shape for slot in basis.layout.slots if slot.is_matrix]
    matrix = sum(shape[0] * shape[1] for shape in weights)
    head = max(shape[0] * shape[1] for shape in weights)  # multiplied for the last token alone
    factors = sum(
        sum(ranks) * sum(slot.shape)
        for slot, ranks in zip(basis.layout.slots, basis.layout.ranks, strict=True)
        if slot.is_matrix
    )
    operations = 2.0 * rows * (width * (matrix - head + factors) + head)
    size = (matrix + factors) * engine._model.dtype.itemsize
    return max(operations / limits[0], size / limits[1])


def speeds(dtype: torch.dtype, clock: Callable[[], float]) -> tuple[float, float]:
    """Operations and bytes read per second, of a large product and a large sum: best of three."""
    one, two = torch.randn(512, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    weight, vector = torch.randn(8192, 8192).to(dtype), torch.randn(1, 8192).to(dtype)

    def least(left: torch.Tensor, right: torch.Tensor) -> float:
        found = []
        for _ in range(3):
            start = clock()
            for _ in range(5):
                torch.nn.functional.linear(left, right)
            found.append((clock() - start) / 5)
        return min(found)

    return 2 * 512 * 2048 * 2048 / least(one, two), weight.nbytes / least(vector, weight)


if __name__ == "__main__":
    main()
