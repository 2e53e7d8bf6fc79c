"""Steps to break against the reference defense, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from inoculate.core.hashing import canonical
from inoculate.evals.statistics import Ratio, ratio_interval
from inoculate.reports.runs import Arm, Grid, Run, harmful, harmful_label


@dataclass(frozen=True)
class Comparison:
    """One defense against the reference, over all attacks with harmful data."""

    arm: Arm
    reference: Arm
    ratio: Ratio | None
    """Over all settings in which every seed can be compared: per seed a geometric mean, the interval over seeds."""
    settings: int
    """How many settings that are."""
    left_out: tuple[str, ...]
    """Settings in which some seed could not be compared, because the reference did not break there or broke at 0."""
    runs: tuple[Run, ...]


def compare(grid: Grid, judge: str) -> list[Comparison]:
    """Every arm against its reference; the reference itself is left out."""
    pairs = ((arm, reference_of(grid, arm)) for arm in grid.arms)
    return [_comparison(grid, judge, arm, reference) for arm, reference in pairs if arm != reference]


def reference_of(grid: Grid, arm: Arm) -> Arm:
    """SFT, of the same length where there are several; without SFT the first defense."""
    plain = [other for other in grid.arms if other.defense == "sft"] or list(grid.arms[:1])
    if arm in plain:
        return plain[0]
    steps = arm.params.get("align_steps")
    return next((other for other in plain if other.params.get("align_steps") == steps), plain[0])


def ratio_in(grid: Grid, judge: str, arm: Arm, reference: Arm, setting: dict[str, Any]) -> Ratio | None:
    """The ratio of steps to break under one setting, paired by seed; None without a pair."""
    return _ratio([[pair] for pair in _pairs(grid, judge, arm, reference, setting).values() if pair is not None])


Pair = tuple[float, float, bool]
"""Steps of the arm, steps of the reference, and whether the arm's are censored."""


def _comparison(grid: Grid, judge: str, arm: Arm, reference: Arm) -> Comparison:
    settings = [setting for setting in grid.settings() if harmful(setting)]
    paired = [(setting, _pairs(grid, judge, arm, reference, setting)) for setting in settings]
    paired = [(setting, pairs) for setting, pairs in paired if pairs]
    seeds = {seed for _, pairs in paired for seed in pairs}
    usable = [pairs for _, pairs in paired if all(pairs.get(seed) is not None for seed in seeds)]
    by_seed = [[pair for pairs in usable if (pair := pairs[seed]) is not None] for seed in sorted(seeds)]
    return Comparison(
        arm=arm,
        reference=reference,
        ratio=_ratio(by_seed) if usable else None,
        settings=len(usable),
        left_out=tuple(harmful_label(grid, setting) for setting, pairs in paired if pairs not in usable),
        runs=tuple(run for setting in settings for run in grid.cell(arm, setting)),
    )


def _pairs(grid: Grid, judge: str, arm: Arm, reference: Arm, setting: dict[str, Any]) -> dict[str, Pair | None]:
    """Seed → the pair, for seeds in which both were measured; None where no ratio can be formed."""
    beside = {canonical(run.seed): run.broke(judge) for run in grid.cell(reference, setting)}
    pairs: dict[str, Pair | None] = {}
    for run in grid.cell(arm, setting):
        ours, theirs = run.broke(judge), beside.get(canonical(run.seed))
        if ours is not None and theirs is not None:
            fit = not theirs.censored and theirs.steps > 0 and ours.steps > 0
            pairs[canonical(run.seed)] = (ours.steps, theirs.steps, ours.censored) if fit else None
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
