"""Intervals for rates that were measured on the same prompts under several seeds: both are resampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inoculate.core.seeds import numpy_rng
from inoculate.evals.statistics import Estimate, Interval

Outcomes = Sequence[Sequence[float]]
"""Seed by seed, whether each prompt was met, or in what share of a seed's runs; all seeds the same prompts in order."""


def bootstrap_rate(outcomes: Outcomes, level: float = 0.95, resamples: int = 4000, seed: int = 0) -> Estimate:
    """The mean over seeds and prompts, with a percentile interval; `n` is the number of prompts.

    Seeds and prompts are drawn with replacement, each on its own: the pigeonhole bootstrap of A. Owen, Annals of
    Applied Statistics 1 (2007) 386–411, which errs on the wide side where seeds are many. With one seed the interval
    is over prompts alone, and with few it is too short: of intervals at 95 %, with 2, 3, 5 and 8 seeds 88, 90, 93 and
    95 % held the truth (simulated: 80 prompts, logits with standard deviations 0.5 of seeds and 1 of prompts).
    Where all outcomes agree it has no width, which is no certainty: there, use `wilson`.

    Raises:
        ValueError: no outcomes, seeds with different numbers of prompts, fewer than one resample, or a level outside
            (0, 1).
    """
    x = _matrix(outcomes)
    return _estimate(float(x.mean()), _drawn(x, resamples, seed), level, x.shape[1])


def bootstrap_difference(
    a: Outcomes, b: Outcomes, level: float = 0.95, resamples: int = 4000, seed: int = 0
) -> Estimate:
    """Mean of a − mean of b on the same prompts, prompts drawn for both at once; seeds too where both have as many.

    So rows are paired in their order: give both the same order of seeds. Limits are those of `bootstrap_rate`.

    Raises:
        ValueError: as `bootstrap_rate`, or if a and b have different numbers of prompts.
    """
    x, y = _matrix(a), _matrix(b)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"expected the same prompts, found {x.shape[1]} and {y.shape[1]}")
    drawn = _drawn(x, resamples, seed) - _drawn(y, resamples, seed, paired=len(x) == len(y))
    return _estimate(float(x.mean() - y.mean()), drawn, level, x.shape[1])


def _drawn(x: np.ndarray, resamples: int, seed: int, paired: bool = True) -> np.ndarray:
    """Resampled means [resamples]: weights of seeds times outcomes times weights of prompts."""
    if resamples < 1:
        raise ValueError(f"expected at least one resample, found {resamples}")
    seeds, prompts = x.shape
    rows = numpy_rng(seed, "seeds", "paired" if paired else "apart")
    by_seed = rows.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)
    by_prompt = numpy_rng(seed, "prompts").multinomial(prompts, np.full(prompts, 1 / prompts), resamples)
    return ((by_seed @ x) * by_prompt).sum(axis=1) / (seeds * prompts)


def _estimate(value: float, drawn: np.ndarray, level: float, n: int) -> Estimate:
    if not 0 < level < 1:
        raise ValueError(f"expected a level in (0, 1), found {level}")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, Interval(float(low), float(high)), n)


def _matrix(outcomes: Outcomes) -> np.ndarray:
    if not outcomes or len({len(row) for row in outcomes}) != 1 or not len(outcomes[0]):
        raise ValueError("expected for each seed the outcomes of the same prompts, at least one")
    return np.asarray(outcomes, dtype=float)
