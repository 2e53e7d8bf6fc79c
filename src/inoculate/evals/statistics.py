"""Intervals, paired comparisons, agreement and cost to break. Pure numpy and scipy.

Intervals over seeds are Student's: they presume that seeds are independent draws and say nothing about prompts,
models or attacks that were not tried.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A value with its interval (None from a single observation) and the number of observations."""

    value: float
    interval: Interval | None
    n: int


class Ratio(NamedTuple):
    """A geometric mean of ratios. With `at_least`, value and `interval.low` are lower bounds and `high` is infinite."""

    value: float
    interval: Interval | None
    n: int
    at_least: bool


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for a rate.

    (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n), p = successes/n, z the normal quantile of (1+level)/2.
    No observations give [0, 1]. Source: E. B. Wilson, JASA 22 (1927) 209–212.

    Raises:
        ValueError: unless 0 ≤ successes ≤ n and 0 < level < 1.
    """
    _check_level(level)
    if not 0 <= successes <= n:
        raise ValueError(f"expected 0 ≤ successes ≤ n, found {successes} of {n}")
    from scipy.special import ndtri

    if n == 0:
        return Interval(0.0, 1.0)
    p, z = successes / n, float(ndtri((1 + level) / 2))
    center, scale = p + z**2 / (2 * n), 1 + z**2 / n
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low = 0.0 if successes == 0 else (center - half) / scale
    return Interval(low, 1.0 if successes == n else (center + half) / scale)


def mean_interval(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean over seeds: x̄ ± t s/√n, t the quantile of Student's distribution with n − 1 degrees of freedom.

    One value has no interval. Source: Student, Biometrika 6 (1908) 1–25.

    Raises:
        ValueError: no values, one that is not finite, or a level outside (0, 1).
    """
    _check_level(level)
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"expected at least one finite value, found {list(values)}")
    mean = float(x.mean())
    if x.size == 1:
        return Estimate(mean, None, 1)
    from scipy.special import stdtrit

    half = float(stdtrit(x.size - 1, (1 + level) / 2) * x.std(ddof=1) / math.sqrt(x.size))
    return Estimate(mean, Interval(mean - half, mean + half), x.size)


def paired_difference(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean of aᵢ − bᵢ with the t interval of the differences (the paired t test, inverted).

    Raises:
        ValueError: the two differ in length, or as `mean_interval`.
    """
    return mean_interval([x - y for x, y in zip(a, b, strict=True)], level)


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    censored: Sequence[bool] | None = None,
    level: float = 0.95,
) -> Ratio:
    """Geometric mean of aᵢ/bᵢ: exp of the mean of log(aᵢ/bᵢ) and of its t interval.

    `censored[i]` says that aᵢ is the budget at which the search stopped, so that the true value is greater. With
    Y = min(X, budget) in place of X, mean log Y ≤ mean log X: the value is a lower bound of what would have been
    found, and a lower confidence end for Y is one for X. The upper end says nothing about X and is infinite.
    A censored denominator bounds its ratio from the other side: leave such pairs out, and say so.

    Raises:
        ValueError: lengths differ, a value is not positive, or as `mean_interval`.
    """
    if not all(value > 0 for value in (*numerators, *denominators)):
        raise ValueError("expected positive values")
    flags = [False] * len(numerators) if censored is None else list(censored)
    logs = [math.log(a / b) for a, b, _ in zip(numerators, denominators, flags, strict=True)]
    value, interval, n = mean_interval(logs, level)
    if interval is not None:
        interval = Interval(math.exp(interval.low), math.inf if any(flags) else math.exp(interval.high))
    return Ratio(math.exp(value), interval, n, any(flags))


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float | None:
    """Agreement of two judges beyond chance: (pₒ − pₑ) / (1 − pₑ), pₑ = Σ_k p_a(k) p_b(k).

    1 is full agreement, 0 is chance. None if both always say the same one thing, where chance explains all.
    Source: J. Cohen, Educational and Psychological Measurement 20 (1960) 37–46.

    Raises:
        ValueError: lists empty or of different length.
    """
    n = len(a)
    if n == 0:
        raise ValueError("expected at least one pair of verdicts")
    agreed = sum(x == y for x, y in zip(a, b, strict=True))
    of_a, of_b = Counter(a), Counter(b)
    by_chance = sum(count * of_b[verdict] for verdict, count in of_a.items())
    if by_chance == n**2:
        return None
    return (agreed / n - by_chance / n**2) / (1 - by_chance / n**2)


def steps_to_break(steps: Sequence[int], scores: Sequence[float], threshold: float) -> int | None:
    """The first evaluated step at which the score is greater than the threshold; None (censored) when it never is.

    The true crossing lies after the evaluated step before it. A model that is broken at step 0 breaks at 0.

    Raises:
        ValueError: lengths differ, or steps do not grow.
    """
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"expected growing steps, found {list(steps)}")
    return next((step for step, score in zip(steps, scores, strict=True) if score > threshold), None)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"expected a level in (0, 1), found {level}")
