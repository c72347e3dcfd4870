"""Decoding passes on one thread against passes on all of them, as a run makes them.

    python benchmarks/threads.py

Random layers of three shapes, fp32; a pass has one token per row. Passes take turns in a thread
beside one that has computed before, as the engine's do. `engine` is what `Threads` chooses.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import engine
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cqd_hub.evaluation.engine._threads import Threads, threads

SHAPES = {
    "quickstart": engine.SHAPES["quickstart"],
    "10m": {
        "hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4,
        "num_key_value_heads": 4, "intermediate_size": 768, "vocab_size": 4096,
    },
    "135m": engine.SHAPES["135m"],
}  # fmt: skip
ROWS = (1, 4, 16, 64, 256)


@torch.inference_mode()
def compare(shape: str, rounds: int = 5) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape])).eval()
    most, chooses = torch.get_num_threads(), Threads(model)
    for rows in ROWS:
        ids = torch.ones(rows, 1, dtype=torch.long)
        seconds: dict[int, list[float]] = {1: [], most: []}
        for _ in range(rounds):
            for count, taken in seconds.items():
                with threads(count):
                    model(ids)
                    for _ in range(4):
                        start = time.perf_counter()
                        model(ids)
                        taken.append(time.perf_counter() - start)
        one, all_of_them = (statistics.median(taken) for taken in seconds.values())
        with chooses.of(rows):
            chosen = torch.get_num_threads()
        print(
            f"{shape:>12}{rows:>6}{1e3 * one:>10.2f}{1e3 * all_of_them:>10.2f}"
            f"{all_of_them / one:>9.2f}{'one' if chosen == 1 else 'all':>8}",
            flush=True,
        )


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.ones(1024, 1024) @ torch.ones(1024, 1024)
    print(f"{torch.get_num_threads()} threads, {os.cpu_count()} cores")
    print(f"{'shape':>12}{'rows':>6}{'one, ms':>10}{'all, ms':>10}{'all/one':>9}{'engine':>8}")
    for shape in SHAPES:
        beside = threading.Thread(target=compare, args=(shape,))
        beside.start()
        beside.join()


if __name__ == "__main__":
    main()
