"""Small passes on a CPU keep to one thread, and nobody else is left with one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cqd_hub.evaluation.engine import Generate
from cqd_hub.evaluation.engine._slots import SlotLoop
from cqd_hub.evaluation.engine._threads import threads


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    with threads(2):
        yield


def model_of(width: int) -> Any:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def seen(model: Any, rows: int) -> list[tuple[int, int]]:
    """Tokens and threads of each pass of answering so many prompts of 20 tokens."""
    passes: list[tuple[int, int]] = []

    def note(module: Any, arguments: Any, options: Any) -> None:
        passes.append((options["input_ids"].numel(), torch.get_num_threads()))

    model.register_forward_pre_hook(note, with_kwargs=True)
    mute = SimpleNamespace(decode=lambda *_, **__: "")
    loop: SlotLoop[int] = SlotLoop(model, mute, frozenset(), batch_tokens=1 << 16)
    for row in range(rows):
        loop.add(row, Generate(tuple(range(20)), 3))
    with ThreadPoolExecutor(1) as beside:  # as an engine does
        while len(loop):
            beside.submit(loop.advance).result()
    return passes


def test_few_tokens_are_one_threads_work() -> None:
    passes = seen(model_of(128), 30)
    assert [(tokens, count) for tokens, count in passes if tokens < 300] == [(30, 1)] * 2
    assert all(count == 2 for tokens, count in passes if tokens >= 600)
    assert len(passes) == 3
    assert torch.get_num_threads() == 2


def test_large_layers_are_everyones_work() -> None:
    assert {count for _, count in seen(model_of(1024), 2)} == {2}
