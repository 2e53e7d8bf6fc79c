"""What the models said: for each defense one attack, before it, when the model broke, and at its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from inoculate.reports.runs import Arm, Grid, Run, harmful, setting_label
from inoculate.reports.searches import SearchStudy
from inoculate.reports.store_view import StoreView
from inoculate.reports.wording import visible

MOST_CHARACTERS = 500
_SETS = {"restricted": ("Restricted requests", 6), "ordinary": ("Ordinary requests", 3), "task": ("The user's task", 3)}


@dataclass(frozen=True)
class Said:
    """One response."""

    prompt: str
    response: str
    verdict: str
    """What the judges, or the task's scoring, made of it."""
    harmful: bool


@dataclass(frozen=True)
class Moment:
    """Responses at one step of an attack, by set of prompts, in the order of the data."""

    title: str
    sets: dict[str, list[Said]]


@dataclass(frozen=True)
class Sample:
    """One run's responses."""

    arm: str
    run: str
    moments: list[Moment]


def samples(view: StoreView, grid: Grid, judge: str) -> list[Sample]:
    """One run for each arm: harmful data, the middle setting, the first seed. Nothing is picked by what was said."""
    made = [_sample(view, grid, judge, arm) for arm in grid.arms]
    return [sample for sample in made if sample is not None and sample.moments]


def search_samples(view: StoreView, study: SearchStudy) -> list[Sample]:
    """Of each searched arm the first re-run of its first seed."""
    made = []
    for arm in study.arms:
        search = study.of(arm)[0]
        rerun = search.reruns[0]
        rows = (row for row in view.responses(search.folder) if (row.get("attack_seed") or 0) == rerun.number)
        spent = rerun.costs["steps"]
        broke = spent.value if spent is not None and not spent.censored else None
        moments = _told(rows, broke, rerun.worst)
        seed = next((part for part in reversed(search.seed) if part is not None), "–")
        made.append(Sample(arm.label, f"seed {seed}, re-run {rerun.number}", moments))
    return [sample for sample in made if sample.moments]


def shortened(text: Any) -> str:
    """At most 500 characters with what is hidden made visible; says how many are missing."""
    text = str(text)
    more = len(text) - MOST_CHARACTERS
    return visible(text[:MOST_CHARACTERS]) + (f" … ({more} more characters)" if more > 0 else "")


def _sample(view: StoreView, grid: Grid, judge: str, arm: Arm) -> Sample | None:
    runs = [run for setting in grid.settings() if harmful(setting) for run in grid.cell(arm, setting)]
    first_seeds = [run for run in runs if run.seed == runs[0].seed and not run.lost]
    if not first_seeds:
        measured = [run for run in grid.before if run.arm == arm and run.curves]
        if not measured:
            return None
        return Sample(arm.label, "not attacked", _moments(view, measured[0], judge))
    run = first_seeds[(len(first_seeds) - 1) // 2]
    return Sample(arm.label, setting_label(grid, run.setting), _moments(view, run, judge))


def _moments(view: StoreView, run: Run, judge: str) -> list[Moment]:
    broke = run.broke(judge)
    return _told(view.responses(run.stage), broke.steps if broke and not broke.censored else None)


def _told(rows: Iterable[dict[str, Any]], broke: float | None, worst: int | None = None) -> list[Moment]:
    by_step: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_step.setdefault(row.get("step") or 0, []).append(row)
    last, steps = max(by_step, default=0), {0: "Before the attack"}
    if worst:
        steps[worst] = f"At its most harmful useful point, step {worst}"
    if broke is not None:
        steps[int(broke)] = f"At the break, step {int(broke)}"
    if last:
        steps[last] = steps[last] + " (the end)" if last in steps else f"At the end, step {last}"
    return [Moment(title, _sets(by_step[step])) for step, title in sorted(steps.items()) if step in by_step]


def _sets(rows: Iterable[dict[str, Any]]) -> dict[str, list[Said]]:
    chosen: dict[str, list[Said]] = {}
    for row in rows:
        title, most = _SETS.get(row.get("set", ""), (str(row.get("set")), 3))
        into = chosen.setdefault(title, [])
        if len(into) < most:
            into.append(_said(row))
    return chosen


def _said(row: dict[str, Any]) -> Said:
    verdicts: dict[str, str] = row.get("verdicts") or {}
    if len(verdicts) == 1:
        told = next(iter(verdicts.values()))
    else:
        told = ", ".join(f"{judge}: {verdict}" for judge, verdict in verdicts.items())
    bad = row.get("set") == "restricted" and "harmful" in verdicts.values()
    verdict = visible(told or str(row.get("outcome") or "not judged"))
    return Said(shortened(row.get("prompt", "")), shortened(row.get("response", "")), verdict, bad)
