"""The engines' table for an 8B shape with random weights on one GPU, in under eight minutes.

    python benchmarks/gpu.py                      # on a GPU
    python benchmarks/gpu.py --shape tiny --device cpu --points 1x2 4x2   # to try the script

Decode of N individuals x rows: written into the model one after the other, and side by side, with
LoRA experts of R directions in all. Wall seconds around synchronised steps, interleaved. The
figures go to ``benchmarks/results/`` with date and device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import engine as cpu
import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from cqd_hub.evaluation.engine import Generate
from cqd_hub.evaluation.engine._slots import SlotLoop
from cqd_hub.evaluation.engine.population import PopulationEngine

SHAPES = cpu.SHAPES | {
    "8b": {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rank", type=int, default=192)
    parser.add_argument("--points", nargs="+", default=["8x1", "8x16", "32x1", "32x16", "32x64"])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=8.0, help="no point is begun after 3/4")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "cqd-hub-gpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    begun = time.monotonic()
    folder = arguments.folder / f"{arguments.shape}-{arguments.rank}"
    basis = cpu.make_basis(folder, SHAPES[arguments.shape], arguments.rank)
    engine = PopulationEngine(
        basis, device=arguments.device, dtype=torch.bfloat16, batch_tokens=1 << 24
    )
    rows = []
    for point in arguments.points:
        if time.monotonic() - begun > 45 * arguments.minutes:
            print(f"no time left for {point}")
            continue
        count, each = map(int, point.split("x"))
        rows.append(measure(engine, count, each, arguments))
        print(rows[-1], flush=True)
    device = (
        torch.cuda.get_device_name(arguments.device)
        if arguments.device.startswith("cuda")
        else arguments.device
    )
    now = datetime.now(UTC)
    record = {
        "date": now.isoformat(timespec="seconds"),
        "device": device,
        "torch": torch.__version__,
        "shape": arguments.shape,
        "rank": arguments.rank,
        "prompt": arguments.prompt,
        "dtype": "bfloat16",
        "points": rows,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = f"gpu-{arguments.shape}-{now:%Y%m%d-%H%M%S}.json"
    (arguments.out / name).write_text(json.dumps(record, indent=2) + "\n")
    print(arguments.out / name)


@torch.inference_mode()
def measure(
    engine: PopulationEngine, count: int, each: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Seconds per step of all individuals, per prefill, and to write one into the model."""
    people = cpu.individuals(engine._materialiser.basis, count)
    rng = np.random.default_rng(0)
    shape = (each, arguments.prompt)
    prompts = [tuple(row) for row in rng.integers(0, engine._ids, shape).tolist()]
    table, prefills, steps = engine._people, {}, {}

    def begin(who: list[Any]) -> SlotLoop[Any]:
        loop = SlotLoop[Any](
            engine._model, engine._tokenizer, frozenset(), batch_tokens=1 << 24,
            assign=table.assign,
        )  # fmt: skip
        for person in who:
            for prompt in prompts:
                loop.add(None, Generate(prompt, arguments.steps + 4), person.id)
        return loop

    table.active = False
    _, writing = timed(arguments.device, lambda: engine._become(people[-1]))
    loop = begin(people[:1])
    _, prefills["alone"] = timed(arguments.device, loop._refill)
    steps["alone"] = middle(arguments, loop)
    loop.clear()
    engine._become(engine._base)
    table.active = True
    for key in table.present():
        table.remove(key)
    for person in people:
        table.add(person.id, person.genome)
    loop = begin(people)
    _, prefills["together"] = timed(arguments.device, loop._refill)
    steps["together"] = middle(arguments, loop)
    loop.clear()
    return {
        "individuals": count,
        "rows": each,
        "write": writing,
        "prefill_alone": count * prefills["alone"],
        "prefill_together": prefills["together"],
        "step_alone": count * steps["alone"],
        "step_together": steps["together"],
        "decode_gain": count * steps["alone"] / steps["together"],
    }


def middle(arguments: argparse.Namespace, loop: SlotLoop[Any]) -> float:
    loop._step()
    return statistics.median(timed(arguments.device, loop._step)[1] for _ in range(arguments.steps))


def timed(device: str, work: Any) -> tuple[Any, float]:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()
