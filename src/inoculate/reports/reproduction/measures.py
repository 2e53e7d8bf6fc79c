"""Differences and ratios over seeds, from a recipe's records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from inoculate.core.hashing import canonical
from inoculate.core.records import Record
from inoculate.evals.statistics import Estimate, mean_interval, paired_difference
from inoculate.reports.few_shot import Study
from inoculate.reports.few_shot_gather import studies
from inoculate.reports.gather import flat, gather
from inoculate.reports.runs import Arm, Run

PerSeed: TypeAlias = Mapping[str, float]
Select: TypeAlias = Callable[[Run], bool]
Value: TypeAlias = Callable[[Run], float | None]


def attacks(records: Sequence[Record]) -> tuple[Run, ...]:
    """The runs with an attack, each with all its settings and not only those that tell it from the others."""
    settings = {row.stage: flat(row) for row in records}
    return tuple(replace(run, setting=settings[run.stage]) for run in gather(records).attacks)


def per_seed(runs: Sequence[Run], select: Select, value: Value) -> PerSeed:
    """Seed → mean over the selected runs. A seed with a run that was lost, or has no value, is left out."""
    found: dict[str, list[float | None]] = defaultdict(list)
    for run in runs:
        if select(run):
            found[canonical(run.seed)].append(value(run))
    return {
        seed: sum(v for v in values if v is not None) / len(values)
        for seed, values in found.items()
        if not any(v is None for v in values)
    }


def mean(values: PerSeed) -> Estimate | None:
    """Over seeds; None without one."""
    return mean_interval(list(values.values())) if values else None


def difference(ours: PerSeed, theirs: PerSeed) -> Estimate | None:
    """Paired by seed; None without a seed that both have."""
    both = [seed for seed in ours if seed in theirs]
    return paired_difference([ours[seed] for seed in both], [theirs[seed] for seed in both]) if both else None


def at_end(metric: str, judge: str = "") -> Value:
    """The value at the last measured step."""
    return lambda run: point.value if (point := run.at_end(metric, judge)) else None


def at_start(metric: str, judge: str = "") -> Value:
    """The value before the first step."""
    return lambda run: point.value if (point := run.at_start(metric, judge)) else None


def change(metric: str, judge: str = "") -> Value:
    """The value at the end minus that at the start."""

    def value(run: Run) -> float | None:
        first, last = run.at_start(metric, judge), run.at_end(metric, judge)
        return None if first is None or last is None else last.value - first.value

    return value


def where(
    *,
    defense: str | None = None,
    guard: str | None = None,
    params: Mapping[str, Any] | None = None,
    setting: Mapping[str, Any] | None = None,
) -> Select:
    """Runs of this defense and guard, with these hyperparameters, under an attack with these settings."""

    def select(run: Run) -> bool:
        return (
            (defense is None or run.arm.defense == defense)
            and (guard is None or run.arm.guard == guard)
            and all(run.arm.params.get(name) == value for name, value in (params or {}).items())
            and all(run.setting.get(name) == value for name, value in (setting or {}).items())
        )

    return select


def study(records: Sequence[Record]) -> Study | None:
    """The few-shot study in the records; the first, where attackers differ."""
    return next(iter(studies(records)), None)


def arm(found: Study, defense: str, **params: Any) -> Arm | None:
    """The starting point of this defense that has these settings."""
    return next((a for a in found.of(defense) if all(a.params.get(k) == v for k, v in params.items())), None)


Cost: TypeAlias = Callable[[str, str], float | None]
"""(defense, metric) → what a step of it costs."""


def costs(records: Sequence[Record]) -> dict[str, Cost]:
    """Base model → what steps of defenses cost on it."""
    found = {(row.base, row.defense, row.metric): row.value for row in records}

    def of(base: str) -> Cost:
        return lambda defense, metric: found.get((base, defense, metric))

    return {base: of(base) for base in dict.fromkeys(row.base for row in records)}


def single(value: float | None) -> Estimate | None:
    """One measurement: no interval."""
    return None if value is None else Estimate(value, None, 1)


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """None if either was not measured."""
    return ours / theirs if ours is not None and theirs else None
