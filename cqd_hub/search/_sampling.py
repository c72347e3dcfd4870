"""Choosing parents from the active archive."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from cqd_hub.search._records import Elites


class Sampling(Protocol):
    """A way to choose parents."""

    def pick(self, elites: Elites, rng: np.random.Generator, count: int = 2) -> tuple[int, ...]:
        """Return *count* individuals, drawn one after the other without replacement.

        Where *elites* holds fewer than *count*, drawing starts again from all of them once
        everyone has been drawn; a lone elite is both parents.

        Raises:
            ValueError: *elites* is empty.
        """


def elite_probabilities(scores: np.ndarray, low: float = 0.5, high: float = 0.8) -> np.ndarray:
    """Return the probability of each elite as a parent (arXiv 2410.14735 §3.1, elite sampling).

    P_j ∝ Π_i [low + minmax(f_ji) (high - low)], i over all K skills, quality and measures alike,
    minmax over the members given. A skill on which all of them score the same says nothing: its
    factor is constant and cancels.

    Args:
        scores: (n, K) scores of the active archive's elites.
        low: Factor of the lowest score, > 0.
        high: Factor of the highest score, ≥ *low*.

    Returns:
        (n,) probabilities, sum 1.

    Raises:
        ValueError: *scores* empty or not two-dimensional, or factors out of order.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores must have shape (n, K) with n ≥ 1; got {scores.shape}")
    _check_factors(low, high)
    lowest, highest = scores.min(axis=0), scores.max(axis=0)
    spread = highest - lowest
    position = (scores - lowest) / np.where(spread > 0, spread, 1.0)
    # Multiplied relative to `high`, so that many skills cannot underflow.
    weights = np.prod((low + position * (high - low)) / high, axis=1)
    return weights / weights.sum()


class EliteSampling:
    """The paper's elite sampling; see `elite_probabilities`.

    The released code's variant uses cell indices for the measures and factors from 0.5 to 1.3;
    ``EliteSampling(high=1.3)`` has its odds (17.6 : 1 at K = 3) on scores.

    Args:
        low: Factor of the lowest score, > 0.
        high: Factor of the highest score, ≥ *low*.

    Raises:
        ValueError: Factors out of order.
    """

    def __init__(self, low: float = 0.5, high: float = 0.8) -> None:
        _check_factors(low, high)
        self._low, self._high = low, high

    def pick(self, elites: Elites, rng: np.random.Generator, count: int = 2) -> tuple[int, ...]:
        """Return *count* individuals; see `Sampling.pick`."""
        _check_some(elites)
        return _draw(elites, elite_probabilities(elites.scores, self._low, self._high), rng, count)


class RandomSampling:
    """Every elite is equally likely: the paper's ablation and the released code's default."""

    def pick(self, elites: Elites, rng: np.random.Generator, count: int = 2) -> tuple[int, ...]:
        """Return *count* individuals; see `Sampling.pick`."""
        _check_some(elites)
        return _draw(elites, np.ones(len(elites)), rng, count)


def _check_factors(low: float, high: float) -> None:
    if not 0 < low <= high:
        raise ValueError(f"the factors must satisfy 0 < low ≤ high; got {low} and {high}")


def _check_some(elites: Elites) -> None:
    if not len(elites):
        raise ValueError("the archive is empty; tell it the experts' scores first")


def _draw(
    elites: Elites, weights: np.ndarray, rng: np.random.Generator, count: int
) -> tuple[int, ...]:
    # Not Generator.choice, whose use of the stream may change between numpy versions: a run resumed
    # under another numpy would draw other parents.
    chosen: list[int] = []
    left = weights
    for _ in range(count):
        if len(chosen) % len(weights) == 0:
            left = weights.copy()
        total = np.cumsum(left)
        # A draw is at most 1 - 2^-53, so the product stays below the total even when rounded, and
        # `right` skips those without weight.
        index = int(np.searchsorted(total, rng.random() * total[-1], side="right"))
        left[index] = 0.0
        chosen.append(int(elites.individuals[index]))
    return tuple(chosen)
