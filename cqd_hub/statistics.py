"""Confidence intervals for scores in [0, 1] (numpy only).

A *sample* here is one problem. Repeats of one problem are not independent of each other, so take
the mean over its repeats first and pass one number per problem: 54 problems repeated 5 times are 54
samples, not 270.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean with its confidence interval.

    Attributes:
        mean: The plain mean of the scores (or of their differences).
        low: Lower limit.
        high: Upper limit.
        n: Number of samples behind it, over all skills.
    """

    mean: float
    low: float
    high: float
    n: int


def mean_interval(scores: np.ndarray, confidence: float = 0.95) -> Interval:
    """Return the mean of *scores* with Wilson's score interval (Wilson 1927).

    For 0/1 scores that is the textbook interval. For others it is Wilson's with the effective
    sample size n* = m(1-m) / (s²/n), the number of 0/1 samples that would leave the same standard
    error (Kish's design effect), and Student's t in place of z because s² is estimated. It never
    leaves [0, 1]. Where all scores are equal s² = 0 says little, and n* = n: the interval that 0/1
    scores of this mean would have, the widest that scores in [0, 1] can need.

    Args:
        scores: (n,) one score in [0, 1] per sample, n ≥ 1.
        confidence: Probability that the interval covers the true mean, in (0, 1).

    Raises:
        ValueError: No scores, not one-dimensional, a score NaN or outside [0, 1].
    """
    scores = _checked(scores)
    n, mean = len(scores), float(np.clip(scores.mean(), 0.0, 1.0))
    z = _normal_quantile(confidence)
    variance = float(scores.var(ddof=1)) / n if n > 1 else 0.0
    binary = bool(np.all((scores == 0) | (scores == 1)))
    # Equal scores can have a variance of rounding noise, unequal ones a variance that underflows.
    if binary or scores.min() == scores.max() or variance == 0:
        return Interval(mean, *_wilson(mean, n, z), n)
    effective = mean * (1 - mean) / variance
    return Interval(mean, *_wilson(mean, effective, _student_quantile(confidence, n - 1)), n)


def average_interval(scores: Sequence[np.ndarray], confidence: float = 0.95) -> Interval:
    """Return the unweighted mean over skills of each skill's mean, with its interval.

    Skills have their own samples, so the variances of their means add, over K². Each is recovered
    from the distance between the mean and the limit of `mean_interval`, separately below and above
    (MOVER, Zou and Donner 2008), which keeps the interval honest where a skill's scores are all
    equal, and inside [0, 1].

    Args:
        scores: K arrays (n_k,), one score in [0, 1] per sample of skill k.
        confidence: Probability that the interval covers the true average, in (0, 1).

    Raises:
        ValueError: No skill, or what `mean_interval` refuses.
    """
    if not scores:
        raise ValueError("scores of at least one skill are needed")
    parts = [mean_interval(skill, confidence) for skill in scores]
    k = len(parts)
    mean = sum(part.mean for part in parts) / k
    below = math.sqrt(sum((part.mean - part.low) ** 2 for part in parts)) / k
    above = math.sqrt(sum((part.high - part.mean) ** 2 for part in parts)) / k
    return Interval(
        mean, max(mean - below, 0.0), min(mean + above, 1.0), sum(part.n for part in parts)
    )


def paired_difference(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], confidence: float = 0.95
) -> Interval:
    """Return the average over skills of mean(a) - mean(b) on the same samples, with its interval.

    Pairing removes what the two have in common, the difficulty of each sample, and is much sharper
    than comparing two intervals. The interval is the adjusted Wald interval for paired proportions
    (Bonett and Price 2012): per skill, two imaginary samples are added, one won by either side,
    before mean and variance of the differences are taken. So two individuals that gave the same
    answers are not reported as exactly equal. Variances add over skills, over K². Applied as it
    stands to scores between 0 and 1.

    Args:
        a: K arrays (n_k,), scores in [0, 1] of one individual on skill k's samples.
        b: K arrays (n_k,), those of the other on the same samples in the same order.
        confidence: Probability that the interval covers the true difference, in (0, 1).

    Returns:
        The plain mean difference and an interval inside [-1, 1]. The interval is centred slightly
        nearer 0 than the mean.

    Raises:
        ValueError: No skill, different samples, or scores that `mean_interval` refuses.
    """
    if not a or len(a) != len(b):
        raise ValueError(f"the same skills are needed on both sides; got {len(a)} and {len(b)}")
    z = _normal_quantile(confidence)
    means, centres, variances, total = [], [], [], 0
    for left, right in zip(a, b, strict=True):
        left, right = _checked(left), _checked(right)
        if len(left) != len(right):
            raise ValueError(
                f"pairs need the same samples on both sides; got {len(left)} and {len(right)}"
            )
        difference = left - right
        n = len(difference) + 2
        centre = float(difference.sum()) / n
        means.append(float(difference.mean()))
        centres.append(centre)
        variances.append((float(np.square(difference).sum() + 2) / n - centre**2) / n)
        total += len(difference)
    k = len(means)
    centre, half = sum(centres) / k, z * math.sqrt(sum(variances)) / k
    return Interval(sum(means) / k, max(centre - half, -1.0), min(centre + half, 1.0), total)


def _checked(scores: np.ndarray) -> np.ndarray:
    checked = np.asarray(scores, dtype=np.float64)
    if checked.ndim != 1 or not checked.size:
        raise ValueError(
            f"scores must be one number per sample, shape (n,) with n ≥ 1; got {checked.shape} "
            "(average the repeats of a sample first)"
        )
    if not bool(np.all((checked >= 0) & (checked <= 1))):
        raise ValueError("scores must lie in [0, 1]")
    return checked


def _wilson(mean: float, n: float, z: float) -> tuple[float, float]:
    spread = z * z / n
    centre = (mean + spread / 2) / (1 + spread)
    half = math.sqrt(mean * (1 - mean) * spread + spread * spread / 4) / (1 + spread)
    # At means of 0 and 1 the limit is the mean itself, which rounding may miss.
    low = 0.0 if mean == 0 else min(max(centre - half, 0.0), mean)
    high = 1.0 if mean == 1 else max(min(centre + half, 1.0), mean)
    return low, high


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1; got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _student_quantile(confidence: float, freedom: int) -> float:
    """Return the two-sided quantile of Student's t.

    Exact for 1 and 2 degrees of freedom, beyond by the expansion of Abramowitz and Stegun (26.7.5):
    within 1 % up to 99 % confidence.
    """
    if freedom == 1:
        return math.tan(math.pi * confidence / 2)
    if freedom == 2:
        return confidence * math.sqrt(2 / (1 - confidence**2))
    z = _normal_quantile(confidence)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
