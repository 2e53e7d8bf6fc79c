"""Charts from runs. One altair definition gives the interactive chart of the page, and its PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from inoculate.core.hashing import canonical
from inoculate.reports.panels import panels
from inoculate.reports.runs import Grid, Run, harmful, in_order, setting_label
from inoculate.reports.wording import axis_title, count, defense_name, setting_text

MOST_PANELS = 12
_CURVES = (
    ("harmful_score", "harmful_score", "Harmful score along the attack", "Harmful score"),
    ("task_accuracy", "finetune_accuracy", "Task accuracy along the attack", "Task accuracy"),
    (
        "mounted_task_accuracy",
        "mounted_finetune_accuracy",
        "Task accuracy while the vector is mounted",
        "Task accuracy",
    ),
    ("harmful_loss", "harmful_loss_test", "Loss on held-out harmful answers", "Loss (nats per token)"),
)


@dataclass(frozen=True)
class Chart:
    """A chart: its file name, what it says, and its Vega-Lite definition."""

    name: str
    title: str
    caption: str
    panels: int
    spec: dict[str, Any]


def charts(grid: Grid, judge: str) -> list[Chart]:
    """Curves along the attack, then the final harmful score against every axis that was swept."""
    made = [_curves(grid, judge, *curve) for curve in _CURVES]
    made += [_against_setting(grid, judge, key) for key in grid.varying()]
    made += [_against_param(grid, judge, name) for name in swept_params(grid)]
    return [chart for chart in made if chart is not None]


def swept_params(grid: Grid) -> list[str]:
    """Hyperparameters of which some defense was given two values or more, everything else alike."""
    values: dict[str, dict[str, set[float]]] = {}
    for arm in grid.arms:
        for name in arm.telling:
            value = arm.params.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault(name, {}).setdefault(f"{arm.defense} {arm.guard}", set()).add(value)
    return [name for name, by_defense in values.items() if any(len(found) > 1 for found in by_defense.values())]


def _curves(grid: Grid, judge: str, name: str, metric: str, title: str, y: str) -> Chart | None:
    shown, note = _shown(grid, [run for run in grid.attacks if run.curve(metric, judge)], grid.varying())
    if not shown:
        return None
    rows = []
    for facet, arm, runs in _cells(shown, lambda run: setting_label(grid, run.setting), lambda run: run.arm.label):
        curves = [run.curve(metric, judge) for run in runs]
        for run, curve in zip(runs, curves, strict=True):
            rows += [_row(facet, arm, _seed_text(run), step, point.value, point.n) for step, point in curve.items()]
        everywhere = sorted(set.intersection(*(set(curve) for curve in curves)))
        rows += [_mean(facet, arm, step, [curve[step].value for curve in curves]) for step in everywhere]
    thresholds = {b.threshold for run in shown if metric == "harmful_score" and (b := run.breaks.get(judge))}
    thresholds = sorted(t for t in thresholds if t is not None)
    seeds = len({run.seed for run in shown})
    caption = f"Thick: mean over seeds. Thin: each of {count(seeds, 'seed')}." if seeds > 1 else "One seed."
    if thresholds:
        caption += " Above the gray line a model counts as broken."
    spec = panels(
        rows, x="Attack step", y=y, arms=_labels(grid), rate=metric != "harmful_loss_test", thresholds=thresholds
    )
    return Chart(name, title, caption + note, _panels(rows), spec)


def _against_setting(grid: Grid, judge: str, key: str) -> Chart | None:
    others = tuple(other for other in grid.varying() if other != key)
    runs = [run for run in grid.attacks if _is_number(run.setting.get(key))]
    return _against(grid, judge, key, runs, others, lambda run: run.setting[key], lambda run: run.arm.label)


def _against_param(grid: Grid, judge: str, name: str) -> Chart | None:
    def label(run: Run) -> str:
        arm = run.arm
        rest = [setting_text(other, arm.params.get(other)) for other in arm.telling if other != name]
        guard = [f"+ {defense_name(arm.guard)}"] if arm.guard else []
        return " ".join([defense_name(arm.defense), *guard, *rest])

    runs = [run for run in grid.attacks if name in run.arm.telling and _is_number(run.arm.params.get(name))]
    return _against(grid, judge, name, runs, grid.varying(), lambda run: run.arm.params[name], label)


def _against(
    grid: Grid,
    judge: str,
    key: str,
    runs: Sequence[Run],
    facets: Sequence[str],
    value: Callable[[Run], float],
    label: Callable[[Run], str],
) -> Chart | None:
    ended = [run for run in runs if run.at_end("harmful_score", judge)]
    shown, note = _shown(grid, ended, facets)
    if len({value(run) for run in shown}) < 2:
        return None

    def facet(run: Run) -> str:
        return ", ".join(setting_text(other, run.setting.get(other)) for other in facets) or "all runs"

    rows = []
    for panel, arm, members in _cells(shown, facet, label):
        by_value: dict[float, list[float]] = {}
        for run in members:
            end = run.at_end("harmful_score", judge)
            if end is not None:
                by_value.setdefault(value(run), []).append(end.value)
                rows.append(_row(panel, arm, _seed_text(run), value(run), end.value, end.n))
        rows += [_mean(panel, arm, x, values) for x, values in sorted(by_value.items())]
    labels = list(dict.fromkeys(row["arm"] for row in rows))
    order = [arm for arm in _labels(grid) if arm in labels]
    spec = panels(
        rows, x=axis_title(key), y="Harmful score at the end", arms=order or labels, rate=True, points=True, key=key
    )
    title = f"Final harmful score against {_lower(axis_title(key))}"
    return Chart(
        f"harmful_score_by_{key}", title, f"Line: mean over seeds. Dots: each seed.{note}", _panels(rows), spec
    )


def _shown(grid: Grid, runs: Sequence[Run], facets: Sequence[str]) -> tuple[list[Run], str]:
    """All runs, unless that were too many panels: then those that differ from the usual in one setting at most."""
    if len({canonical([run.setting.get(key) for key in facets]) for run in runs}) <= MOST_PANELS:
        return list(runs), ""
    kept, fixed = list(runs), []
    for key in sorted(facets, key=lambda key: key == "learning_rate"):
        attacked = [run for run in kept if harmful(run.setting)] or kept
        values = [canonical(run.setting.get(key)) for run in attacked]
        distinct = list(dict.fromkeys(values))
        most = max(values.count(value) for value in distinct)
        common = [value for value in distinct if values.count(value) == most]
        usual = common[(len(common) - 1) // 2]
        kept = [run for run in kept if canonical(run.setting.get(key)) == usual]
        fixed.append(setting_text(key, kept[0].setting.get(key)))
        if len({canonical([run.setting.get(other) for other in facets]) for run in kept}) <= MOST_PANELS:
            break
    return kept, f" Only {', '.join(fixed)} is drawn; the table has every setting."


def _cells(
    runs: Sequence[Run], facet: Callable[[Run], str], label: Callable[[Run], str]
) -> list[tuple[str, str, list[Run]]]:
    cells: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: in_order(run.setting)):
        cells.setdefault((facet(run), label(run)), []).append(run)
    return [(panel, arm, members) for (panel, arm), members in cells.items()]


def _row(panel: str, arm: str, seed: str, x: float, y: float, n: int | None) -> dict[str, Any]:
    return {"panel": panel, "arm": arm, "seed": seed, "x": x, "y": round(y, 4), "n": n, "of": "seed"}


def _mean(panel: str, arm: str, x: float, values: Sequence[float]) -> dict[str, Any]:
    return {"panel": panel, "arm": arm, "seed": "mean", "x": x, "y": round(sum(values) / len(values), 4), "of": "mean"}


def _seed_text(run: Run) -> str:
    return "/".join(str(seed) for seed in dict.fromkeys(seed for seed in run.seed if seed is not None)) or "–"


def _panels(rows: Sequence[dict[str, Any]]) -> int:
    return len({row["panel"] for row in rows})


def _labels(grid: Grid) -> list[str]:
    return [arm.label for arm in grid.arms]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lower(title: str) -> str:
    return title[0].lower() + title[1:]
