"""Every random draw comes from (run seed, index, purpose), so no generator state is ever stored."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, index: int, purpose: str) -> np.random.Generator:
    """Return the generator of one purpose of one child.

    Args:
        seed: The run's seed, ≥ 0.
        index: The child's index in the run, ≥ 0.
        purpose: A fixed word such as ``"parents"`` or ``"crossover"``; different words give
            independent streams.
    """
    word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index, word])))
