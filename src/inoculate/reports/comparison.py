"""Steps to break against the reference defense, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inoculate.core.hashing import canonical
from inoculate.evals.statistics import Ratio, ratio_interval
from inoculate.reports.runs import Arm, Grid, Run, harmful, harmful_label

_LOST_PAIR = "because some seed has no pair of runs there"
_NO_RUNS = "for want of runs with the same seed and setting"


@dataclass(frozen=True)
class Comparison:
    """One defense against the reference, over all attacks with harmful data."""

    arm: Arm
    reference: Arm
    ratio: Ratio | None
    """Over all settings in which every seed can be compared: per seed a geometric mean, the interval over seeds."""
    settings: int
    """How many settings that are."""
    left_out: Mapping[str, tuple[str, ...]]
    """Why no ratio could be formed → the settings in which that held for some seed."""
    runs: tuple[Run, ...]


def compare(grid: Grid, judge: str) -> list[Comparison]:
    """Every arm against its reference; the reference itself is left out."""
    pairs = ((arm, reference_of(grid, arm)) for arm in grid.arms)
    return [_comparison(grid, judge, arm, reference) for arm, reference in pairs if arm != reference]


def reference_of(grid: Grid, arm: Arm) -> Arm:
    """SFT without a guard, of the same length where there are several; without SFT the first defense."""
    plain = [other for other in grid.arms if other.defense == "sft" and not other.guard] or list(grid.arms[:1])
    if arm in plain:
        return plain[0]
    steps = arm.params.get("align_steps")
    return next((other for other in plain if other.params.get("align_steps") == steps), plain[0])


def ratio_in(grid: Grid, judge: str, arm: Arm, reference: Arm, setting: dict[str, Any]) -> Ratio | None:
    """The ratio of steps to break under one setting, paired by seed; None without a pair."""
    found = _pairs(grid, judge, arm, reference, setting).values()
    return _ratio([[pair] for pair in found if not isinstance(pair, str)])


Pair = tuple[float, float, bool]
"""Steps of the arm, steps of the reference, and whether the arm's are censored."""


def _comparison(grid: Grid, judge: str, arm: Arm, reference: Arm) -> Comparison:
    settings = [setting for setting in grid.settings() if harmful(setting) and grid.cell(arm, setting)]
    paired = [(setting, _pairs(grid, judge, arm, reference, setting)) for setting in settings]
    seeds = sorted({seed for _, pairs in paired for seed in pairs})
    by_seed: list[list[Pair]] = [[] for _ in seeds]
    left_out: dict[str, tuple[str, ...]] = {}
    for setting, pairs in paired:
        row = [pairs.get(seed, _LOST_PAIR) for seed in seeds]
        why = next((pair for pair in row if isinstance(pair, str)), None)
        if why is not None or not row:
            left_out[why or _NO_RUNS] = (*left_out.get(why or _NO_RUNS, ()), harmful_label(grid, setting))
            continue
        for pairs_of_seed, pair in zip(by_seed, row, strict=True):
            if not isinstance(pair, str):
                pairs_of_seed.append(pair)
    settings_used = len(by_seed[0]) if by_seed else 0
    runs = tuple(run for setting in settings for run in grid.cell(arm, setting))
    return Comparison(arm, reference, _ratio(by_seed) if settings_used else None, settings_used, left_out, runs)


def _pairs(grid: Grid, judge: str, arm: Arm, reference: Arm, setting: dict[str, Any]) -> dict[str, Pair | str]:
    """Seed → the pair, or why no ratio can be formed; seeds that were not measured in both are left out."""
    beside = {canonical(run.seed): run.broke(judge) for run in grid.cell(reference, setting)}
    pairs: dict[str, Pair | str] = {}
    for run in grid.cell(arm, setting):
        seed, ours = canonical(run.seed), run.broke(judge)
        theirs = beside.get(seed)
        if ours is None or theirs is None:
            continue
        if theirs.censored:
            pairs[seed] = f"because {reference.label} did not break in every seed"
        elif not theirs.steps or not ours.steps:
            pairs[seed] = "because a model was broken before the attack began"
        else:
            pairs[seed] = (ours.steps, theirs.steps, ours.censored)
    return pairs


def _ratio(by_seed: Sequence[Sequence[Pair]]) -> Ratio | None:
    if not by_seed:
        return None
    ratio = ratio_interval(
        [_geometric_mean(ours for ours, _, _ in pairs) for pairs in by_seed],
        [_geometric_mean(theirs for _, theirs, _ in pairs) for pairs in by_seed],
        censored=[any(censored for _, _, censored in pairs) for pairs in by_seed],
    )
    # Steps are read on a grid: seeds that agree exactly do not make the interval a point.
    interval = ratio.interval
    agree = interval is not None and not ratio.at_least and math.isclose(interval.low, interval.high, rel_tol=1e-9)
    return ratio._replace(interval=None) if agree else ratio


def _geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))
