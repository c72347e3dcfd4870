"""How many of PyTorch's threads a pass on a CPU is worth.

A run's model works in another thread than what was computed before it, and OpenMP then puts helpers
to sleep whenever they wait. Waking them for each of a small pass's products takes longer than they
save (`benchmarks/threads.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

_WORTH = 1 << 27  # operations in a layer from which on helpers save time
_READING = 16  # tokens that reading a layer's weights counts as


class Threads:
    """Chooses threads for a model's passes, by the size of its layers alone.

    All of them are those of the thread that this is made in.
    """

    def __init__(self, model: Any) -> None:
        layers = model.config.get_text_config().num_hidden_layers
        weights = sum(parameter.numel() for parameter in model.parameters())
        weights -= model.get_input_embeddings().weight.numel()
        self._layer = weights / max(layers, 1)
        self._choose, self._all = model.device.type == "cpu", torch.get_num_threads()

    def of(self, tokens: int) -> AbstractContextManager[None]:
        """Within, a pass over so many tokens has the threads that it is worth."""
        small = 2 * self._layer * (tokens + _READING) < _WORTH
        return threads(1 if self._choose and small else self._all)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within, PyTorch has *count* threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
