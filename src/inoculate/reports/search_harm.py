"""Harm of the chosen attack on held-out prompts, bounded by utility, with what its interval rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from inoculate.evals.bootstrap import bootstrap_difference, bootstrap_rate
from inoculate.evals.statistics import Estimate, Interval, cohen_kappa, mean_interval, wilson
from inoculate.reports.runs import Arm
from inoculate.reports.searches import Rerun, Search, SearchStudy
from inoculate.reports.wording import count


class Harm(NamedTuple):
    """A mean bounded harmful score, its interval, and what was resampled for it."""

    value: float
    interval: Interval | None
    over: str


class Outcomes(NamedTuple):
    """Seed by seed (or, of one seed, run by run) the share of runs in which each prompt was answered harmfully."""

    prompts: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]
    seeds: bool
    """Rows are seeds, not the re-runs of one."""


class Agreement(NamedTuple):
    """How far two judges call the same responses harmful."""

    judges: tuple[str, str]
    kappa: float | None
    same: float
    n: int


def harm(study: SearchStudy, arm: Arm) -> Harm | None:
    """The mean over seeds and re-runs; None if no run was measured.

    The interval is a bootstrap over prompts and seeds where verdicts were kept at the points that count, and else
    Student's over seeds.
    """
    means = [sum(found) / len(found) for search in study.of(arm) if (found := _scores(search))]
    if not means:
        return None
    value = sum(means) / len(means)
    found = outcomes(study, arm)
    if found is None:
        interval = mean_interval(means).interval
        clipped = Interval(max(0.0, interval.low), min(1.0, interval.high)) if interval else None
        return Harm(value, clipped, f"{count(len(means), 'seed')}; no verdicts on the same prompts there")
    rows = found.rows
    over = f"{count(len(found.prompts), 'prompt')}"
    if len(rows) > 1:
        over += f" × {count(len(rows), 'seed' if found.seeds else 're-run')}"
    interval = bootstrap_rate(rows).interval
    if interval is not None and interval.low == interval.high:  # every resample is alike: what is left is the prompts
        return Harm(
            value, wilson(round(value * len(found.prompts)), len(found.prompts)), f"{over}, all alike: Wilson's"
        )
    return Harm(value, interval, over)


def difference(study: SearchStudy, arm: Arm, other: SearchStudy, beside: Arm) -> Estimate | str:
    """Bounded harmful score of one arm minus another's on the same prompts; or why there is none."""
    ours, theirs = outcomes(study, arm), outcomes(other, beside)
    if ours is None or theirs is None:
        return "no verdicts on the same prompts where they count"
    if ours.prompts != theirs.prompts:
        return "other prompts"
    return bootstrap_difference(ours.rows, theirs.rows)


def outcomes(study: SearchStudy, arm: Arm) -> Outcomes | None:
    """Verdicts on the same prompts where each run was at its most harmful and useful; None unless all were kept."""
    judge, searches = study.judges[0], study.of(arm)
    by_search = [[_at_worst(search, rerun, judge) for rerun in search.reruns if _counts(rerun)] for search in searches]
    by_search = [runs for runs in by_search if runs]
    runs = [run for runs in by_search for run in runs]
    if not runs or None in runs:
        return None
    kept = [[run for run in of_seed if run is not None] for of_seed in by_search]
    prompts = kept[0][0][0]
    if any(asked != prompts for of_seed in kept for asked, _ in of_seed):
        return None
    if len(kept) == 1:
        return Outcomes(prompts, tuple(met for _, met in kept[0]), seeds=False)
    means = tuple(
        tuple(sum(column) / len(column) for column in zip(*(met for _, met in of_seed), strict=True))
        for of_seed in kept
    )
    return Outcomes(prompts, means, seeds=True)


def agreements(study: SearchStudy, arm: Arm) -> list[Agreement]:
    """Each pair of judges, on all responses that were kept of an arm's re-runs."""
    said = [
        verdicts
        for search in study.of(arm)
        for rerun in search.reruns
        for rows in rerun.verdicts.values()
        for _, verdicts in rows
    ]
    judges = list(dict.fromkeys(judge for verdicts in said for judge in verdicts))
    found = []
    for i, one in enumerate(judges):
        for other in judges[i + 1 :]:
            pairs = [(v[one] == "harmful", v[other] == "harmful") for v in said if one in v and other in v]
            if pairs:
                a, b = zip(*pairs, strict=True)
                same = sum(x == y for x, y in pairs) / len(pairs)
                found.append(Agreement((one, other), cohen_kappa(a, b), same, len(pairs)))
    return found


def _counts(rerun: Rerun) -> bool:
    return rerun.harmful is not None


def _scores(search: Search) -> list[float]:
    return [rerun.harmful for rerun in search.reruns if rerun.harmful is not None]


def _at_worst(search: Search, rerun: Rerun, judge: str) -> tuple[tuple[str, ...], tuple[float, ...]] | None:
    """Prompts and verdicts at a kept step that has the run's bounded harmful score."""
    for step, rows in sorted(rerun.verdicts.items(), key=lambda item: abs(item[0] - (rerun.worst or 0))):
        prompts, met = tuple(prompt for prompt, _ in rows), _met(rows, judge)
        utility = rerun.measured.at("utility", step)
        useful = utility is not None and utility.value >= search.bound.utility
        if useful and met and math.isclose(sum(met) / len(met), rerun.harmful or 0.0, abs_tol=1e-9):
            return prompts, met
    useful = [point for point in rerun.measured.curve("utility").values() if point.value >= search.bound.utility]
    if not useful and rerun.verdicts:  # never useful: bounded by utility, nothing that it said counts as harm
        prompts = tuple(prompt for prompt, _ in next(iter(rerun.verdicts.values())))
        return prompts, (0.0,) * len(prompts)
    return None


def _met(rows: Sequence[tuple[str, object]], judge: str) -> tuple[float, ...]:
    return tuple(float(isinstance(verdicts, dict) and verdicts.get(judge) == "harmful") for _, verdicts in rows)
