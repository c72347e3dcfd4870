"""Weights of the one model made from the K archives' best elites."""

from __future__ import annotations

import numpy as np


def aggregation_weights(
    scores: np.ndarray, *, unit: float = 1.0, temperature: float = 1.0
) -> np.ndarray:
    """Return β = softmax_k(unit · f_k / temperature) (arXiv 2410.14735 §3.4).

    The aggregate is base + Σ_k β_k τ_k, where τ_k is the task vector of archive k's best elite (of
    equals the most recent, `Archive.best`) and f_k its score on skill k. The paper does not state
    the unit of f_k, and it decides: for scores 0.764, 0.382, 0.426 the weights are nearly equal on
    0..1 (``unit=1``: 0.417, 0.285, 0.298) and one-hot on 0..100 (``unit=100``: 1 - 2e-15, 0, 0).

    Args:
        scores: (K,) score of archive k's best elite on skill k, in [0, 1].
        unit: 1 for scores on 0..1, 100 for percentages.
        temperature: Above 1 evens the weights, below 1 sharpens them; > 0.

    Returns:
        (K,) weights, sum 1.

    Raises:
        ValueError: *scores* empty, not one-dimensional or not finite; *unit* or *temperature* ≤ 0.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or not scores.size or not bool(np.all(np.isfinite(scores))):
        raise ValueError(f"scores must be a (K,) array of finite numbers; got {scores.tolist()}")
    if not (unit > 0 and temperature > 0):
        raise ValueError(f"unit and temperature must be > 0; got {unit} and {temperature}")
    logits = scores * (unit / temperature)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()
