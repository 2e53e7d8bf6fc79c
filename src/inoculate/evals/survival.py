"""Cost to break under censoring: an attack that never broke says only that breaking costs more than it spent."""

from __future__ import annotations

import math
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

    The band is Greenwood's on the scale log(−log S): S^exp(±z √(Σ dᵢ/(nᵢ(nᵢ−dᵢ))) / log S). Where S is 0 it is (0, 0).
    Sources: Kaplan & Meier, JASA 53 (1958) 457–481; Kalbfleisch & Prentice, 2nd ed., §1.4.

    Raises:
        ValueError: no costs, lengths differ, a cost is negative or not finite, or a level outside (0, 1).
    """
    from scipy.special import ndtri

    t, broke = _checked(costs, censored)
    if not 0 < level < 1:
        raise ValueError(f"expected a level in (0, 1), found {level}")
    z = float(ndtri((1 + level) / 2))
    times, surviving, low, high = [], [], [], []
    s, variance = 1.0, 0.0
    for time in np.unique(t[broke]):
        at_risk, events = int((t >= time).sum()), int((broke & (t == time)).sum())
        s *= 1 - events / at_risk
        variance += events / (at_risk * (at_risk - events)) if at_risk > events else math.inf
        times.append(float(time))
        surviving.append(s)
        if s in (0.0, 1.0):
            ends = (s, s)
        else:
            spread = math.exp(z * math.sqrt(variance) / math.log(s))  # below 1, since log s is negative
            ends = (s ** (1 / spread), s**spread)
        low.append(ends[0])
        high.append(ends[1])
    return Survival(tuple(times), tuple(surviving), tuple(low), tuple(high), len(t))


def median_cost(costs: Sequence[float], censored: Sequence[bool], level: float = 0.95) -> Cost:
    """The first cost at which no more than half has held, and those at which the ends of the band say so.

    Source of the interval: Brookmeyer & Crowley, Biometrics 38 (1982) 29–41, on the band of `kaplan_meier`.

    Raises:
        ValueError: as `kaplan_meier`.
    """
    curve = kaplan_meier(costs, censored, level)
    first = [
        next((time for time, share in zip(curve.times, shares, strict=True) if share <= 0.5), None)
        for shares in (curve.surviving, curve.low, curve.high)
    ]
    return Cost(first[0], first[1], first[2], curve.n, curve.n - sum(map(bool, censored)))


def cost_ratio(
    ours: tuple[Sequence[float], Sequence[bool]],
    theirs: tuple[Sequence[float], Sequence[bool]],
    clusters: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> CostRatio:
    """Median cost of ours over theirs, each (costs, censored); the interval is a percentile bootstrap's.

    Clusters (defense seeds) are drawn with replacement, those of the same name in both arms together, and runs within
    each: so what varies between seeds is not taken for certainty. A resample in which our median is not reached is
    infinitely great; one in which theirs is not, and ours is, counts as 0; where neither is, it says nothing.
    A cost of 0 on their side (broken before the first step) has no ratio.

    Raises:
        ValueError: as `kaplan_meier`.
    """
    arms = [_checked(*ours), _checked(*theirs)]
    labels = clusters or (tuple(range(len(arms[0][0]))), tuple(("theirs", i) for i in range(len(arms[1][0]))))
    mine, other = _median(*arms[0]), _median(*arms[1])
    if other is None or other == 0:
        return CostRatio(None, None, None, at_least=False)
    value = float(arms[0][0].max()) / other if mine is None else mine / other
    rng = numpy_rng(seed, "cost ratio")
    drawn = [_ratio(*_resampled(arms, labels, rng)) for _ in range(resamples)]
    kept = np.array([ratio for ratio in drawn if ratio is not None])
    low, high = (
        np.quantile(kept, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf") if len(kept) else (0, math.inf)
    )
    return CostRatio(value, float(low) if math.isfinite(low) else value, _finite(high), at_least=mine is None)


_Arm = tuple[np.ndarray, np.ndarray]


def _resampled(arms: Sequence[_Arm], labels: Sequence[Sequence[Hashable]], rng: np.random.Generator) -> list[_Arm]:
    shared = set(labels[0]) == set(labels[1])
    names = [list(dict.fromkeys(of_arm)) for of_arm in labels]
    picks = [rng.integers(len(of_arm), size=len(of_arm)) for of_arm in names]
    if shared:
        names[1], picks[1] = names[0], picks[0]
    made = []
    for (costs, broke), of_arm, known, picked in zip(arms, labels, names, picks, strict=True):
        rows = []
        for pick in picked:
            members = np.array([i for i, label in enumerate(of_arm) if label == known[pick]])
            rows.append(rng.choice(members, len(members)))
        chosen = np.concatenate(rows)
        made.append((costs[chosen], broke[chosen]))
    return made


def _ratio(ours: _Arm, theirs: _Arm) -> float | None:
    mine, other = _median(*ours), _median(*theirs)
    if mine is None:
        return None if other is None else math.inf
    if other is None:
        return 0.0
    return mine / other if other else math.inf


def _median(costs: np.ndarray, broke: np.ndarray) -> float | None:
    """The Kaplan–Meier median, without a band."""
    order = np.argsort(costs, kind="stable")
    s, t, b, i = 1.0, costs[order], broke[order], 0
    while i < len(t):
        same = t == t[i]
        s *= 1 - (b & same).sum() / (len(t) - i)
        if s <= 0.5 + 1e-12 and (b & same).any():
            return float(t[i])
        i += int(same.sum())
    return None


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _checked(costs: Sequence[float], censored: Sequence[bool]) -> _Arm:
    t, broke = np.asarray(costs, dtype=float), ~np.asarray(censored, dtype=bool)
    if t.ndim != 1 or not len(t) or len(t) != len(broke) or not (np.isfinite(t) & (t >= 0)).all():
        raise ValueError(f"expected costs ≥ 0 and as many flags, found {list(costs)} and {list(censored)}")
    return t, broke
