"""Cost to break under censoring: an attack that never broke says only that breaking costs more than it spent."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from inoculate.core.seeds import numpy_rng


class Survival(NamedTuple):
    """A Kaplan–Meier curve: after each of `times`, the share `surviving` that has not broken, with a pointwise band."""

    times: tuple[float, ...]
    surviving: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int
    at_risk: tuple[int, ...]
    """Runs that had neither broken nor been cut off before each of `times`."""
    broke: tuple[int, ...]
    """Runs that broke at each of `times`."""


class Cost(NamedTuple):
    """A median cost. None is not reached: more than half held out for as long as they were watched."""

    value: float | None
    low: float | None
    """None: the interval's lower end is not reached either."""
    high: float | None
    """None: no upper end."""
    n: int
    broke: int


class CostRatio(NamedTuple):
    """A ratio of median costs. With `at_least`, the numerator was not reached and `value` is a lower bound."""

    value: float | None
    low: float | None
    high: float | None
    """None: no upper end."""
    at_least: bool


def kaplan_meier(costs: Sequence[float], censored: Sequence[bool], level: float = 0.95) -> Survival:
    """S(t) = ∏_{tᵢ ≤ t} (1 − dᵢ/nᵢ), dᵢ of nᵢ at risk breaking at tᵢ; censored at tᵢ are at risk there.

    The band is Greenwood's on the scale log(−log S): S^exp(±z √(Σ dᵢ/(nᵢ(nᵢ−dᵢ))) / log S). It has no value where S
    is 0; there it is Clopper and Pearson's for n of n, 0 to 1 − ((1−level)/2)^(1/n), n the last at risk over S before.
    `times` are in the unit of `costs`; they are empty, and the curve is 1, if nothing broke.
    Sources: Kaplan & Meier, JASA 53 (1958) 457–481; Kalbfleisch & Prentice, 2nd ed., §1.4; for n, Peto's effective
    number as in Dorey & Korn, Statistics in Medicine 6 (1987) 679–687.

    Raises:
        ValueError: no costs, lengths differ, a cost is negative or not finite, or a level outside (0, 1).
    """
    t, broke = _checked(costs, censored)
    _check_level(level)
    times = np.unique(t[broke])
    at_risk = [int((t >= time).sum()) for time in times]
    events = [int((broke & (t == time)).sum()) for time in times]
    band, s, variance, top = [], 1.0, 0.0, 1.0
    for n, d in zip(at_risk, events, strict=True):
        if n > d:
            s, variance = s * (1 - d / n), variance + d / (n * (n - d))
            bottom, top = _ends(s, variance, level)
        else:
            s, bottom, top = 0.0, 0.0, min(top, 1 - _all_alike(n / s, level))
        band.append((s, bottom, top))
    surviving, low, high = zip(*band, strict=True) if band else ((), (), ())
    return Survival(tuple(times.tolist()), surviving, low, high, len(t), tuple(at_risk), tuple(events))


def median_cost(costs: Sequence[float], censored: Sequence[bool], level: float = 0.95) -> Cost:
    """The first cost at which no more than half has held, and those at which the ends of the band say so.

    The lower end is 0 where so few runs held until the first break that half of all may break before: n runs, with
    ((1−level)/2)^(1/n) < ½. So at 95 % fewer than six runs, however alike, have the interval 0 to ∞. Runs are taken to
    be independent; those of one defense seed may not be.

    Source of the interval: Brookmeyer & Crowley, Biometrics 38 (1982) 29–41, on the band of `kaplan_meier`.

    Raises:
        ValueError: as `kaplan_meier`.
    """
    curve = kaplan_meier(costs, censored, level)
    first = [
        next((time for time, share in zip(curve.times, shares, strict=True) if share <= _HALF), None)
        for shares in (curve.surviving, curve.low, curve.high)
    ]
    few = _all_alike(curve.at_risk[0] if curve.times else curve.n, level) < 1 - _HALF
    return Cost(first[0], 0.0 if few else first[1], first[2], curve.n, sum(curve.broke))


def cost_ratio(
    ours: tuple[Sequence[float], Sequence[bool]],
    theirs: tuple[Sequence[float], Sequence[bool]],
    clusters: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    resolution: float = 1.3,
) -> CostRatio:
    """Median cost of ours over theirs, each (costs, censored); the interval is a percentile bootstrap's, stretched.

    Clusters (defense seeds) are drawn with replacement, and runs within each: so what varies between seeds is not
    taken for certainty. Arms that have the same clusters draw them together. Each resample bounds the ratio:

        ours reached, theirs reached    [a/b, a/b]
        ours not                        [longest run of ours/b, ∞]
        theirs not, ours reached        [0, 0]              against the defense
        neither, or theirs is 0         [0, ∞]              nothing is said

    Where the median of ours is not reached, these bounds differ between clusters as the controls do, and clusters that
    all held seem to disagree. So if clusters are drawn together, `low` is at least what comes out in units of each
    cluster's median of theirs, with ours cut off at the multiple that every cluster was observed to.

    `low` is a quantile of the lower bounds and `high` of the upper. There is no ratio, and no interval, to a median
    of theirs that is not reached, or that is 0 (broken before the first step).

    Percentiles of few clusters are too narrow: the spread of n is taken over n where n − 1 say what it is worth. So
    each end is moved away from the ratio, on a logarithmic scale, to t/z √(n/(n − 1)) of its distance, with the
    quantiles of Student's t at n − 1 and of the normal (n: clusters of the arm that has fewer). The distance is at
    least `resolution`: an end may fall on the ratio itself, since a break is known to within two measured steps. Fewer
    than three clusters have no interval, 0 to ∞; a ratio of 0, which has no logarithm, keeps its percentiles.
    `benchmarks/ratio_coverage.py` says how often either holds 1 where nothing was defended. After Hesterberg, The
    American Statistician 69 (2015) 371–386, who stretches the levels of the percentiles; of three clusters no level
    reaches beyond the most extreme.

    Args:
        resolution: the factor to within which costs are known; the default is that of re-runs of 200 steps measured at
            20 of them.

    Raises:
        ValueError: as `kaplan_meier`; a resolution below 1; a cluster's label missing or too many; fewer than one
            resample.
    """
    arms = _checked(*ours), _checked(*theirs)
    labels = clusters or (range(len(arms[0][0])), range(len(arms[1][0])))
    _check_level(level)
    if resolution < 1:
        raise ValueError(f"expected a factor of at least 1, found {resolution}")
    if resamples < 1 or any(len(of_arm) != len(costs) for of_arm, (costs, _) in zip(labels, arms, strict=True)):
        raise ValueError(f"expected resamples and a cluster for each run, found {resamples} and {labels}")
    (mine, longest), (other, _) = (_medians(*arm, np.ones((1, len(arm[0])))) for arm in arms)
    if not 0 < other[0] < math.inf:
        return CostRatio(None, None, None, at_least=False)
    together = clusters is not None and set(labels[0]) == set(labels[1])
    draws = _drawn(labels, together, resamples, seed)
    fewest = min(len(set(of_arm)) for of_arm in labels)

    def interval(arms: tuple[_Arm, _Arm], value: float) -> tuple[float, float | None]:
        least, most = _bounds(*(_medians(*arm, drawn) for arm, drawn in zip(arms, draws, strict=True)))
        low = np.quantile(least, (1 - level) / 2, method="inverted_cdf")  # others interpolate, and ∞ − ∞ is no number
        high = np.quantile(most, (1 + level) / 2, method="inverted_cdf")
        return _stretched(value, float(low), float(high), fewest, level, resolution)

    value, at_least = float(min(mine[0], longest[0]) / other[0]), not math.isfinite(mine[0])
    low, high = interval(arms, value)
    if at_least and together and (alike := _observed_alike(arms, labels)) is not None:
        low = max(low, interval(*alike)[0])
    return CostRatio(value, low, high, at_least)


FEWEST = 3
"""Seeds with fewer of which a ratio has no interval."""
_HALF = 0.5 + 1e-9
"""A product of shares that is a half on paper can be rounded to just above it."""

_Arm = tuple[np.ndarray, np.ndarray]
"""Costs [n], and whether each broke [n]."""


def _ends(s: float, variance: float, level: float) -> tuple[float, float]:
    from scipy.special import ndtri

    spread = math.exp(float(ndtri((1 + level) / 2)) * math.sqrt(variance) / math.log(s))  # below 1, as log s < 0
    return s ** (1 / spread), s**spread


def _all_alike(n: float, level: float) -> float:
    """Clopper and Pearson's lower end for n of n: the least share that would do so with a chance of (1 − level)/2."""
    return ((1 - level) / 2) ** (1 / n)


def _medians(costs: np.ndarray, broke: np.ndarray, drawn: np.ndarray) -> _Arm:
    """Kaplan–Meier medians (∞: not reached) and greatest costs, each [R], of runs drawn so many times [R, n]."""
    times, at = np.unique(costs, return_inverse=True)
    there = np.eye(len(times))[at]
    seen, events = drawn @ there, drawn @ (there * broke[:, None])
    at_risk = seen[:, ::-1].cumsum(axis=1)[:, ::-1]
    held = np.cumprod(1 - events / np.maximum(at_risk, 1), axis=1) > _HALF
    median = np.where(held.all(axis=1), math.inf, times[held.argmin(axis=1)])
    return median, times[len(times) - 1 - (seen[:, ::-1] > 0).argmax(axis=1)]


def _observed_alike(
    arms: tuple[_Arm, _Arm], labels: Sequence[Sequence[Hashable]]
) -> tuple[tuple[_Arm, _Arm], float] | None:
    """Costs in units of their cluster's median of theirs, ours cut off at the multiple to which every cluster was
    observed; and the ratio of the medians of these. None where theirs has no such median in some cluster.
    """
    (ours, mine), (theirs, others) = arms
    number = {label: i for i, label in enumerate(dict.fromkeys(labels[1]))}
    of_ours, of_theirs = (np.array([number[label] for label in of_arm]) for of_arm in labels)
    alone = ((theirs[of_theirs == i], others[of_theirs == i]) for i in range(len(number)))
    unit = np.array([_medians(*arm, np.ones((1, len(arm[0]))))[0][0] for arm in alone])
    if not ((unit > 0) & np.isfinite(unit)).all():
        return None
    ours, theirs = ours / unit[of_ours], theirs / unit[of_theirs]
    most = min(ours[of_ours == i].max() for i in range(len(number)))
    cut = (np.minimum(ours, most), mine & (ours <= most)), (theirs, others)
    (median, longest), (other, _) = (_medians(*arm, np.ones((1, len(arm[0])))) for arm in cut)
    return cut, float(min(median[0], longest[0]) / other[0])


def _bounds(ours: _Arm, theirs: _Arm) -> _Arm:
    """What each resample says of the ratio, at least [R] and at most [R]: the table of `cost_ratio`."""
    (mine, longest), (other, _) = ours, theirs
    said = (other > 0) & np.isfinite(other)
    by = np.where(said, other, 1)
    unsaid = np.where(np.isinf(other) & np.isfinite(mine), 0, math.inf)
    return np.where(said, np.minimum(mine, longest) / by, 0), np.where(said, mine / by, unsaid)


def _drawn(labels: Sequence[Sequence[Hashable]], together: bool, resamples: int, seed: int) -> list[np.ndarray]:
    """How often each run is in each resample, arm by arm [R, n]."""
    rng = numpy_rng(seed, "cost ratio")
    made, picked = [], {}
    for of_arm in labels:
        members: dict[Hashable, list[int]] = defaultdict(list)
        for i, label in enumerate(of_arm):
            members[label].append(i)
        if not (together and picked):
            picks = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), resamples)
            picked = dict(zip(members, picks.T, strict=True))
        drawn = np.empty((resamples, len(of_arm)))
        for label, runs in members.items():
            drawn[:, runs] = rng.multinomial(picked[label] * len(runs), np.full(len(runs), 1 / len(runs)))
        made.append(drawn)
    return made


def _stretched(
    value: float, low: float, high: float, n: int, level: float, resolution: float
) -> tuple[float, float | None]:
    """The ends of an interval of percentiles, as far from the ratio as n clusters ask for."""
    from scipy.special import ndtri, stdtrit

    if n < FEWEST:
        return 0.0, None
    if value == 0:
        return low, _finite(high)
    factor = float(stdtrit(n - 1, (1 + level) / 2) / ndtri((1 + level) / 2)) * math.sqrt(n / (n - 1))
    with np.errstate(divide="ignore", over="ignore"):  # an end of 0 or ∞ stays there
        at, ends = np.log(value), np.log([low, high])
        reach = factor * np.maximum(np.abs(ends - at), math.log(resolution))
        least, most = np.exp(at - reach[0]), np.exp(at + reach[1])
    return float(least), _finite(float(most))


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"expected a level in (0, 1), found {level}")


def _checked(costs: Sequence[float], censored: Sequence[bool]) -> _Arm:
    t, broke = np.asarray(costs, dtype=float), ~np.asarray(censored, dtype=bool)
    if t.ndim != 1 or not len(t) or t.shape != broke.shape or not (np.isfinite(t) & (t >= 0)).all():
        raise ValueError(f"expected costs ≥ 0 and as many flags, found {list(costs)} and {list(censored)}")
    return t, broke
