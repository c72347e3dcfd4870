"""What a basis costs to build, and what children and exports made from it cost.

    python benchmarks/basis.py               # five families, beside mergekit and a plain SVD
    python benchmarks/basis.py --shape gpt2 --repeats 3
    python benchmarks/basis.py --memory      # peak memory on a Llama-3.2-1B shape

Random weights in bfloat16, experts 1 % away; one thread. Every way runs in a process of its own, so
that its peak of resident memory (files mapped into memory count) is its own; said are CPU seconds
without imports, and the peak less that of a process that only imports. Ratios are what carries over
to another machine. The ways:

(a) `build_basis` of one full fine-tune: reading, hashing, factoring, writing to the cache;
(b) ``mergekit-extract-lora --max-rank 64``, less its ``--help``: a full SVD of every linear layer;
    embeddings (and what is no ``nn.Linear``) are copied whole, and of GPT-2 nothing is left to do;
(c) plain full SVD: both models loaded, `torch.linalg.svd` of every matrix's difference.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

# No heavy import here: a process starts with the peak memory of the one that started it.

RANK = 64
CHILDREN = 9
_LLAMA = {"tie_word_embeddings": True, "max_position_embeddings": 2048}


class Shape(NamedTuple):
    """A family's configuration.

    Args:
        config: Class name in transformers.
        settings: Its values.
        layers: The setting that names the depth.
        compared: Depth at which the ways are compared, where all of it would take too long.
    """

    config: str
    settings: dict[str, Any]
    layers: str = "num_hidden_layers"
    compared: int | None = None


SHAPES = {
    "smollm2-135m": Shape(
        "LlamaConfig",
        _LLAMA
        | {
            "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
        },
    ),
    "gpt2": Shape("GPT2Config", {"n_layer": 12}, layers="n_layer"),
    "qwen2-0.5b": Shape(
        "Qwen2Config",
        _LLAMA
        | {
            "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936,
        },
        compared=6,
    ),
    "gemma3-270m": Shape(
        "Gemma3TextConfig",
        _LLAMA
        | {
            "hidden_size": 640, "num_hidden_layers": 18, "num_attention_heads": 4,
            "num_key_value_heads": 1, "head_dim": 256, "intermediate_size": 2048,
            "vocab_size": 262144,
        },
    ),
    "qwen3-moe": Shape(
        "Qwen3MoeConfig",
        _LLAMA
        | {
            "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
            "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 1024,
            "moe_intermediate_size": 256, "num_experts": 16, "num_experts_per_tok": 2,
            "vocab_size": 32000,
        },
    ),
    "llama3.2-1b": Shape(
        "LlamaConfig",
        _LLAMA
        | {
            "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192,
            "vocab_size": 128256,
        },
    ),
}  # fmt: skip
MEMORY = "llama3.2-1b"


class Cost(NamedTuple):
    """Of one process: CPU seconds and peak memory in bytes; what it said; why it failed."""

    seconds: float
    peak: int
    said: dict[str, Any]
    failure: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=[s for s in SHAPES if s != MEMORY], action="append")
    parser.add_argument("--repeats", type=int, default=1, help="of builds; medians are said")
    parser.add_argument("--memory", action="store_true", help="peak memory on a 1B shape instead")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "cqd-hub-benchmark-basis"
    )
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        print(json.dumps(WORK[arguments.work.pop("do")](**arguments.work)))
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    idle = work(do="nothing")
    helped = mergekit("--help")
    if arguments.memory:
        report_memory(arguments.folder, idle, helped)
        return
    print(
        f"{'shape':14}{'layers':>7} {'way':36}{'CPU s':>9}{'(b)/this':>9}{'(c)/this':>9}"
        f"{'peak MB':>9}  factored"
    )
    shapes = arguments.shape or [shape for shape in SHAPES if shape != MEMORY]
    for shape in shapes:
        report_ways(arguments.folder, shape, arguments.repeats, idle, helped)
    print(
        f"\n{'shape':14}{'layers':>7}{'MB':>7}{'ready s':>9}{'child s':>9}{'checkpoint s':>14}"
        f"{'adapter s':>11}{'mergekit s':>12}"
    )
    for shape in shapes:
        report_children(arguments.folder, shape)


# What the processes do.


def make(folder: str, shape: str, layers: int, shard: str) -> dict[str, Any]:
    """A base and two full fine-tunes, every tensor moved by about 1 %."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    kind = SHAPES[shape]
    config = getattr(transformers, kind.config)(**kind.settings | {kind.layers: layers})
    config.dtype = torch.bfloat16
    with torch.device("cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(Path(folder) / "base", max_shard_size="50GB")
    for number in range(2):
        for tensor in model.parameters():
            step = 0.01 * tensor.data.float().std().nan_to_num().clamp_min(0.01)
            tensor.data.add_(torch.randn_like(tensor.data) * step)
        model.save_pretrained(Path(folder) / f"expert{number}", max_shard_size=shard)
    return {}


def nothing() -> dict[str, Any]:
    """Import what the others import."""
    _imports()
    return {}


def build(folder: str, cache: str, rank: int | str, experts: int = 1) -> dict[str, Any]:
    """(a); with the number of matrices that were factored."""
    torch = _imports()
    from cqd_hub.genome import build_basis, open_models

    torch.set_num_threads(1)
    start = time.process_time()
    paths = [Path(folder) / f"expert{number}" for number in range(experts)]
    base, opened = open_models(Path(folder) / "base", paths)
    basis = build_basis(base, opened, rank=rank, cache=Path(cache))
    seconds = time.process_time() - start
    return {"seconds": seconds, "factored": len(basis.factors[0])}


def svd(folder: str) -> dict[str, Any]:
    """(c)"""
    torch = _imports()
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    start = time.process_time()
    states = [
        dict(AutoModelForCausalLM.from_pretrained(Path(folder) / name).named_parameters())
        for name in ("base", "expert0")
    ]
    factors = {}
    with torch.no_grad():
        for name, weight in states[0].items():
            if weight.ndim > 1:
                delta = states[1][name].float() - weight.float()
                factors[name] = torch.linalg.svd(delta, full_matrices=False)
    seconds = time.process_time() - start
    return {
        "seconds": seconds,
        "factored": sum(s.numel() // s.shape[-1] for _, s, _ in factors.values()),
    }


def children(folder: str, cache: str) -> dict[str, Any]:
    """Children of two experts written over one resident model, and exports of the last."""
    torch = _imports()
    import numpy as np

    from cqd_hub.genome import (
        Genome,
        Materialiser,
        build_basis,
        crossover,
        mutate_expert,
        open_models,
    )
    from cqd_hub.genome.export import export_adapter, export_checkpoint, export_mergekit

    torch.set_num_threads(1)
    place = Path(folder)
    base, experts = open_models(place / "base", [place / f"expert{i}" for i in (0, 1)])
    basis = build_basis(base, experts, rank=RANK, cache=Path(cache))
    rng = np.random.default_rng(0)
    parents = [Genome.of_expert(basis.hash, basis.layout, i) for i in (0, 1)]

    def child() -> Genome:
        share = rng.uniform(0.3, 0.7)
        crossed = crossover(parents, np.array([share, 1 - share]), basis)
        return mutate_expert(crossed, rng, basis=basis, expert=0, w_max=0.3)

    found: dict[str, Any] = {
        "bytes": sum(f.stat().st_size for f in place.glob("base/*.safetensors"))
    }
    start = time.process_time()
    materialiser = Materialiser(basis)
    resident = materialiser.state(child())
    found["ready"] = time.process_time() - start
    times = []
    for _ in range(CHILDREN):
        start = time.process_time()
        last = child()
        materialiser.write(last, resident)
        times.append(time.process_time() - start)
    found["child"] = statistics.median(times)
    exports = {
        "checkpoint": lambda out: export_checkpoint(last, materialiser, out),
        "adapter": lambda out: export_adapter(
            last, basis, out, base_name=str(place / "base"), rank=RANK, partial=True
        ),
        "mergekit": lambda out: export_mergekit(last, basis, out),
    }
    for name, export in exports.items():
        with tempfile.TemporaryDirectory(dir=place) as out:
            start = time.process_time()
            try:
                export(Path(out) / name)
            except Exception as error:  # said in the table, and the others go on
                print(f"{name}: {error}", file=sys.stderr)
                continue
            found[name] = time.process_time() - start
    return found


def _imports() -> Any:
    import torch
    import transformers

    from cqd_hub.genome import build_basis  # noqa: F401

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    _ = transformers.AutoModelForCausalLM
    return torch


WORK = {"make": make, "nothing": nothing, "build": build, "svd": svd, "children": children}


# How they are run and said.


def work(**what: Any) -> Cost:
    """Do one piece of work in a process of its own."""
    cost = _measured([sys.executable, __file__, "--work", json.dumps(what)])
    return cost._replace(seconds=cost.said.get("seconds", cost.seconds))


def mergekit(*arguments: str) -> Cost:
    """Run ``mergekit-extract-lora``."""
    return _measured([str(Path(sys.executable).with_name("mergekit-extract-lora")), *arguments])


def _measured(command: list[str]) -> Cost:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        lines, complaints = out.read().strip().split("\n"), errors.read().strip().split("\n")
    failure = ""
    if process.returncode:
        failure = f"fails ({process.returncode}): {complaints[-1][:70]}"
    said = json.loads(lines[-1]) if lines[-1].startswith("{") else {}
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, said, failure)


def models(folder: Path, shape: str, layers: int, shard: str = "50GB") -> Path:
    """The folder of a shape's models, made if need be."""
    place = folder / f"{shape}-{layers}-{shard}"
    if not (place / "done").exists():
        shutil.rmtree(place, ignore_errors=True)
        made = work(do="make", folder=str(place), shape=shape, layers=layers, shard=shard)
        if made.failure:
            raise SystemExit(f"{shape}: {made.failure}")
        (place / "done").touch()
    return place


def built(place: Path, rank: int | str) -> Cost:
    """(a), with an empty cache."""
    with tempfile.TemporaryDirectory(dir=place) as cache:
        return work(do="build", folder=str(place), cache=cache, rank=rank)


def extracted(place: Path, helped: Cost) -> Cost:
    """(b); its seconds are those beyond ``--help``."""
    with tempfile.TemporaryDirectory(dir=place) as out:
        names = {"--model": "expert0", "--base-model": "base"}
        options = [text for key, name in names.items() for text in (key, str(place / name))]
        cost = mergekit(*options, "--out-path", f"{out}/lora", "--max-rank", str(RANK), "--quiet")
        config = Path(out) / "lora" / "adapter_config.json"
        factored = _factored(Path(out) / "lora") if config.exists() else 0
    said = {"factored": factored}
    return cost._replace(seconds=cost.seconds - helped.seconds, said=said)


def _factored(adapter: Path) -> int:
    """Matrices of an adapter that are factored, from the headers of its files."""
    names: set[str] = set()
    for path in adapter.glob("*.safetensors"):
        with path.open("rb") as file:
            names |= set(json.loads(file.read(int.from_bytes(file.read(8), "little"))))
    return sum("lora_A" in name or "lora_embedding_A" in name for name in names)


def report_ways(folder: Path, shape: str, repeats: int, idle: Cost, helped: Cost) -> None:
    kind = SHAPES[shape]
    depth = kind.settings[kind.layers]
    layers = kind.compared or depth
    place = models(folder, shape, layers)
    ways = {
        f"(a) build_basis, rank {RANK}": lambda: built(place, RANK),
        "(a) build_basis, rank full": lambda: built(place, "full"),
        f"(b) mergekit-extract-lora, rank {RANK}": lambda: extracted(place, helped),
        "(c) plain full SVD": lambda: work(do="svd", folder=str(place)),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            costs[name].append(way())
    seconds = {name: statistics.median(c.seconds for c in found) for name, found in costs.items()}
    rivals = [name for name in ways if not name.startswith("(a)")]
    for name, found in costs.items():
        line = f"{shape:14}{f'{layers}/{depth}':>7} {name:36}"
        if found[0].failure:
            print(line + found[0].failure, flush=True)
            continue
        line += f"{seconds[name]:9.2f}"
        for rival in rivals:
            known = not costs[rival][0].failure
            line += f"{seconds[rival] / seconds[name]:9.1f}" if known else f"{'-':>9}"
        peak = max(cost.peak for cost in found) - (helped if name[1] == "b" else idle).peak
        print(f"{line}{peak / 1e6:9.0f}  {found[0].said['factored']}", flush=True)


def report_children(folder: Path, shape: str) -> None:
    kind = SHAPES[shape]
    depth = kind.settings[kind.layers]
    place = models(folder, shape, depth)
    with tempfile.TemporaryDirectory(dir=place) as cache:
        build = work(do="build", folder=str(place), cache=cache, rank=RANK, experts=2)
        if build.failure:
            raise SystemExit(f"{shape}: {build.failure}")
        cost = work(do="children", folder=str(place), cache=cache)
    if cost.failure:
        print(f"{shape:14}{depth:7} {cost.failure}", flush=True)
        return
    said = cost.said
    line = f"{shape:14}{depth:7}{said['bytes'] / 1e6:7.0f}{said['ready']:9.2f}{said['child']:9.3f}"
    for name, width in (("checkpoint", 14), ("adapter", 11), ("mergekit", 12)):
        line += f"{said[name]:{width}.2f}" if name in said else f"{'fails':>{width}}"
    print(line, flush=True)


def report_memory(folder: Path, idle: Cost, helped: Cost) -> None:
    """Peaks beside what they must stay below: the base and one expert's largest shard."""
    depth = SHAPES[MEMORY].settings["num_hidden_layers"]
    print(f"{'case':64}{'CPU s':>9}{'peak MB':>9}{'bound MB':>10}")
    for layers, shard, ranks in (
        (depth, "50GB", (RANK,)),
        (depth, "540MB", (RANK,)),
        (2, "50GB", (RANK, "full")),
        (2, "540MB", (RANK, "full")),
    ):
        place = models(folder, MEMORY, layers, shard)
        files = [f.stat().st_size for f in place.glob("expert0/*.safetensors")]
        bound = sum(f.stat().st_size for f in place.glob("base/*.safetensors")) + max(files)
        case = f"{MEMORY}, {layers} layers, {len(files)} shard(s)"
        for rank in ranks:
            cost = built(place, rank)
            _say_memory(f"{case}, (a) build_basis, rank {rank}", cost, idle, bound)
        if len(files) == 1:
            name = f"{case}, (b) mergekit-extract-lora, rank {RANK}"
            _say_memory(name, extracted(place, helped), helped, bound)


def _say_memory(case: str, cost: Cost, idle: Cost, bound: int) -> None:
    if cost.failure:
        print(f"{case:64}{cost.failure}", flush=True)
        return
    peak = (cost.peak - idle.peak) / 1e6
    print(f"{case:64}{cost.seconds:9.1f}{peak:9.0f}{bound / 1e6:10.0f}", flush=True)


if __name__ == "__main__":
    main()
