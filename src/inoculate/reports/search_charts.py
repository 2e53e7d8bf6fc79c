"""Charts of attack searches: harm along the chosen attack, survival, harm against utility, and best of k trials.

Defenses differ in color and also in dash and shape, so that a reader who cannot tell the colors can tell the lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from inoculate.evals.best_of import chance_of_break, expected_best
from inoculate.evals.survival import kaplan_meier
from inoculate.reports.charts import Chart
from inoculate.reports.panels import GRAY, PALETTE, REFERENCE
from inoculate.reports.runs import Arm
from inoculate.reports.search_marks import DASHES, SHAPES, Style, lines, scatter
from inoculate.reports.search_wording import setting_words
from inoculate.reports.searches import AXES, Axis, Rerun, SearchStudy, Trial
from inoculate.reports.wording import count, listed

_ENDS = {"ok": "complete", "pruned": "pruned", "diverged": "diverged"}
_POINTS = 60
"""Most points of a curve over trials: a search of thousands needs no more to be drawn."""


def search_charts(study: SearchStudy) -> list[Chart]:
    """All charts that the records have numbers for."""
    made = (_along(study), _survival(study), _pareto(study), _best_of(study))
    return [chart for chart in made if chart is not None]


def _along(study: SearchStudy) -> Chart | None:
    rows = []
    for axis in AXES[:4]:
        for arm in study.arms:
            curves = [found for r in _reruns(study, arm) if len(found := _curve(r, axis, study.judges[0])) > 1]
            rows += [{"panel": axis.title, "arm": arm.label, **row} for row in _banded(curves)]
    if not rows:
        return None
    runs = max(len(_reruns(study, arm)) for arm in study.arms)
    caption = (
        f"Held-out prompts, the chosen attack of each seed. Line: mean over {_most(study, runs)}; band: lowest to "
        f"highest of them. {_threshold_told(study)} Harmful samples, tokens and FLOPs grow with the steps, at the rate "
        "measured until the break or the end. Utility is not in this chart; everywhere else harm counts "
        "only where the model is useful."
    )
    spec = lines(_style(study), rows, x="", y="Harmful score", thresholds=_thresholds(study))
    return Chart("search_harmful_score", "Harmful score along the chosen attack", caption, _count(rows), spec)


def _curve(rerun: Rerun, axis: Axis, judge: str) -> list[tuple[float, float]]:
    """What was spent → harmful score; where only steps were recorded with the score, in proportion to them."""
    curve = sorted((step, point.value) for step, point in rerun.measured.curve("harmful_score", judge).items())
    steps, spent = rerun.costs["steps"], rerun.costs[axis.key]
    if axis.key == "steps":
        return [(float(step), value) for step, value in curve]
    if steps is None or spent is None or not steps.value:
        return []
    return [(step * spent.value / steps.value, value) for step, value in curve]


def _banded(curves: Sequence[Sequence[tuple[float, float]]]) -> list[dict[str, Any]]:
    """Mean, lowest and highest over curves, read between their points; as far as the shortest goes."""
    if not curves:
        return []
    end = min(curve[-1][0] for curve in curves)
    xs = sorted({x for curve in curves for x, _ in curve if x <= end})
    rows = []
    for x in xs:
        ys = [_read(curve, x) for curve in curves]
        y, low, high = sum(ys) / len(ys), min(ys), max(ys)
        rows.append({"x": _short(x), "y": round(y, 4), "low": round(low, 4), "high": round(high, 4), "n": len(ys)})
    return rows


def _read(curve: Sequence[tuple[float, float]], x: float) -> float:
    before = max((point for point in curve if point[0] <= x), default=curve[0])
    after = min((point for point in curve if point[0] >= x), default=curve[-1])
    if after[0] == before[0]:
        return before[1]
    return before[1] + (after[1] - before[1]) * (x - before[0]) / (after[0] - before[0])


def _survival(study: SearchStudy) -> Chart | None:
    rows, ticks = [], []
    for axis in AXES[:4]:
        for arm in study.arms:
            costs = study.costs(arm, axis)
            if not costs.values:
                continue
            curve, blank = kaplan_meier(costs.values, costs.censored), {"panel": axis.title, "arm": arm.label}
            found = zip(curve.times, curve.surviving, curve.low, curve.high, strict=True)
            steps = [(0.0, 1.0, 1.0, 1.0), *found]
            last = max(costs.values)
            steps += [(last, *steps[-1][1:])] if last > steps[-1][0] else []
            rows += [
                {**blank, "x": _short(x), "y": round(y, 4), "low": round(low, 4), "high": round(high, 4), "n": curve.n}
                for x, y, low, high in steps
            ]
            for value, censored in zip(costs.values, costs.censored, strict=True):
                if censored:
                    share = [y for x, y, _, _ in steps if x <= value][-1]
                    ticks.append(
                        {**blank, "x": _short(value), "y": round(share, 4), "n": curve.n, "of": "mark-censored"}
                    )
    if not rows:
        return None
    caption = (
        "Kaplan–Meier: the share of runs that the chosen attack has not broken after spending so much; band: pointwise "
        "95% interval. An upright stroke is a run that ended unbroken (censored). To the right of a line's end nothing "
        "is known."
    )
    spec = lines(_style(study), [*rows, *ticks], x="", y="Share not broken", step=True)
    return Chart("search_survival", "How long models hold", caption, _count(rows), spec)


def _best_of(study: SearchStudy) -> Chart | None:
    rows: list[dict[str, Any]] = []
    for arm in study.arms:
        found = [[(t.harmful, t.broke) for t in s.trials if t.harmful is not None] for s in study.of(arm)]
        found = [trials for trials in found if trials]
        best = [[(float(k), expected_best([h for h, _ in ts], k)) for k in _ks(len(ts))] for ts in found]
        chance = [[(float(k), chance_of_break([broke for _, broke in ts], k)) for k in _ks(len(ts))] for ts in found]
        for panel, curves in (("Expected best score of k trials", best), ("Chance that one of k breaks it", chance)):
            rows += [{"panel": panel, "arm": arm.label, **row} for row in _banded(curves)]
    if not rows:
        return None
    caption = (
        "On the attacker's own prompts, exact over all orders of the trials that were made. Line: mean over seeds; "
        "band: lowest to highest seed. A search that learns is better late than early, so a fresh search of k trials "
        "finds less than this says. Harmful scores are bounded by utility."
    )
    spec = lines(_style(study), rows, x="Trials k", y="")
    return Chart("search_best_of", "What k trials of the search find", caption, _count(rows), spec)


def _ks(n: int) -> list[int]:
    return sorted({round(1 + i * (n - 1) / (_POINTS - 1)) for i in range(_POINTS)})


def _pareto(study: SearchStudy) -> Chart | None:
    rows, marks = [], []
    for arm in study.arms:
        trials = [trial for search in study.of(arm) for trial in search.trials if trial.point is not None]
        rows += [{"panel": arm.label, "arm": arm.label, **_dot(trial)} for trial in trials]
        front = pareto_front([trial.point for trial in trials if trial.point is not None])
        marks += [{"panel": arm.label, "arm": arm.label, "x": x, "y": y, "of": "front"} for x, y in front]
        bounds = [search.bound for search in study.of(arm)]
        marks += [{"panel": arm.label, "x": u, "of": "mark-x"} for u in sorted({round(b.utility, 4) for b in bounds})]
        marks += [{"panel": arm.label, "y": t, "of": "mark-y"} for t in sorted({b.threshold for b in bounds})]
    if not rows:
        return None
    failed = sum(trial.status == "failed" for search in study.searches for trial in search.trials)
    caption = (
        "One dot per trial, on the attacker's own prompts, at its most harmful useful point (if it has none, where "
        "utility was highest). Right of the upright line a model is useful, above the level line it is harmful: up and "
        "to the right is broken. The stepped line is the front: no trial is both more harmful and more useful. Shapes "
        "say how a trial ended."
    )
    caption += f" {count(failed, 'failed trial')} {'has' if failed == 1 else 'have'} no point." if failed else ""
    spec = scatter(_style(study), [*rows, *marks])
    return Chart("search_pareto", "Harm against utility, all trials", caption, _count(rows), spec)


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other is at least as good as in both and better in one, by growing x."""
    kept: list[tuple[float, float]] = []
    best = -1.0
    for x, y in sorted(set(points), reverse=True):
        if y > best:
            kept.append((x, y))
            best = y
    return kept[::-1]


def _dot(trial: Trial) -> dict[str, Any]:
    x, y = trial.point or (0.0, 0.0)
    told = {"trial": trial.number, "setting": setting_words(trial.setting)}
    return {"x": round(x, 4), "y": round(y, 4), "end": _ENDS[trial.status], **told, "of": "trial"}


def _style(study: SearchStudy) -> Style:
    """The undefended model in vermilion (a second one in gray), defenses in the palette's order."""
    controls = [arm for arm in study.arms if any(study.control(other) == arm for other in study.arms)]
    rest = [arm for arm in study.arms if arm not in controls]
    hues = {arm.label: PALETTE[i % len(PALETTE)] for i, arm in enumerate(rest)}
    hues |= {arm.label: REFERENCE if i == 0 else GRAY for i, arm in enumerate(controls)}
    labels = [arm.label for arm in study.arms]
    dashes = {label: DASHES[i % len(DASHES)] for i, label in enumerate(labels)}
    shapes = {label: SHAPES[i % len(SHAPES)] for i, label in enumerate(labels)}
    return Style(labels, hues, dashes, shapes)


def _reruns(study: SearchStudy, arm: Arm) -> list[Rerun]:
    return [rerun for search in study.of(arm) for rerun in search.reruns]


def _thresholds(study: SearchStudy) -> list[float]:
    return sorted({search.bound.threshold for search in study.searches})


def _threshold_told(study: SearchStudy) -> str:
    levels = listed([f"{level:g}" for level in _thresholds(study)])
    return f"Above the gray line at {levels} a useful model counts as broken."


def _most(study: SearchStudy, runs: int) -> str:
    return f"up to {count(runs, 'run')} (seeds × re-runs)"


def _count(rows: Sequence[Mapping[str, Any]]) -> int:
    return len({row["panel"] for row in rows})


def _short(x: float) -> float:
    """Six significant digits: a chart of FLOPs needs no more, and the page is smaller."""
    return float(f"{x:.6g}")
