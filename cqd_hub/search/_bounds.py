"""What a run reads off its experts' scores before the first child."""

from __future__ import annotations

import numpy as np


def derive_bounds(
    expert_scores: np.ndarray, low: float = 0.85, high: float = 1.15, *, clip: bool = True
) -> np.ndarray:
    """Return the grid's bounds per skill from the experts' scores (A.1.3).

    From *low* times the weakest expert's score to *high* times the strongest's. The paper stops
    there; since no score exceeds 1, what lies above would be cells that nobody can reach, so by
    default the upper bound is clipped to 1 (``clip=False`` is the paper's). An interval of zero
    width becomes [0, 1]; that happens where all experts score 0, so nothing is known of the skill.

    Args:
        expert_scores: (E, K) scores in [0, 1].
        low: Factor on the weakest expert's score, ≥ 0.
        high: Factor on the strongest expert's score, ≥ *low*.
        clip: Whether to clip the upper bounds to 1.

    Returns:
        (K, 2) lower and upper bounds.

    Raises:
        ValueError: Scores of the wrong shape or outside [0, 1], or factors out of order.
    """
    scores = _checked(expert_scores)
    if not 0 <= low <= high:
        raise ValueError(f"the factors must satisfy 0 ≤ low ≤ high; got {low} and {high}")
    bounds = np.stack([low * scores.min(axis=0), high * scores.max(axis=0)], axis=1)
    if clip:
        bounds = np.minimum(bounds, 1.0)
    bounds[bounds[:, 0] >= bounds[:, 1]] = (0.0, 1.0)
    return bounds


def skill_experts(expert_scores: np.ndarray) -> tuple[int, ...]:
    """Return for each skill the index of its expert: the highest score, of equals the first.

    The paper has one expert per skill by construction; this defines it where there are more experts
    than skills, or fewer.

    Args:
        expert_scores: (E, K) scores in [0, 1].

    Raises:
        ValueError: Scores of the wrong shape or outside [0, 1].
    """
    return tuple(np.argmax(_checked(expert_scores), axis=0).tolist())


def _checked(expert_scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(expert_scores, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] < 1 or scores.shape[1] < 2:
        raise ValueError(f"expert_scores must have shape (E, K), E ≥ 1, K ≥ 2; got {scores.shape}")
    if not bool(np.all((scores >= 0) & (scores <= 1))):
        raise ValueError(f"expert_scores must lie in [0, 1]; got {scores.tolist()}")
    return scores
