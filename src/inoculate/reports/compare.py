"""Two stores' attack searches side by side: what each defense of one is worth over that of the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from inoculate.core.errors import InputError
from inoculate.core.hashing import canonical
from inoculate.evals.statistics import Estimate
from inoculate.evals.survival import CostRatio
from inoculate.reports.export import Format, tables_text
from inoculate.reports.html import environments, read_one_recipe, search_facts
from inoculate.reports.page import filled, write_page
from inoculate.reports.runs import Arm
from inoculate.reports.search_charts import search_charts
from inoculate.reports.search_harm import Harm, difference, harm
from inoculate.reports.search_part import SearchPart, search_part
from inoculate.reports.search_wording import cost_interval, cost_text, ratio_interval_text, ratio_text
from inoculate.reports.searches import AXES, STEPS, TRIALS, Axis, SearchStudy, ratio_of
from inoculate.reports.store_view import StoreView
from inoculate.reports.tables import Cell, Column, Table
from inoculate.reports.wording import count, listed, rate, times, value_text, visible

NOTHING = Cell("–")


class Side(NamedTuple):
    """One store, and what its searches found."""

    letter: str
    name: str
    view: StoreView
    part: SearchPart
    facts: list[tuple[str, str]]


class Pair(NamedTuple):
    """A defense of A beside one of B."""

    ours: Arm
    theirs: Arm

    @property
    def label(self) -> str:
        """Their name, or both where they differ."""
        return (
            self.ours.label
            if self.ours.label == self.theirs.label
            else f"{self.ours.label} against {self.theirs.label}"
        )


def write_comparison(
    a: Path, b: Path, out: Path | None = None, recipe: str | None = None, tables: Format | None = None
) -> Path:
    """Write one page about two stores' searches and return its path.

    Args:
        a, b: the stores.
        out: the file to write; by default `comparison.html` in the first.
        recipe: only this recipe, of both; needed where a store holds several.
        tables: write the page's tables in this form too, beside it.

    Raises:
        InputError: a store without searches, none of whose defenses can be compared, or as `write_report`.
    """
    one, two = _side("A", a, recipe), _side("B", b, recipe)
    pairs = pairs_of(one.part.study, two.part.study)
    if not pairs:
        found = [listed([arm.label for arm in side.part.study.arms]) for side in (one, two)]
        raise InputError(
            "no pair of defenses to compare",
            file=b,
            found=found[1],
            expected=found[0],
        )
    shown = (cost_comparison(one, two, pairs), harm_comparison(one, two, pairs))
    drawn = [
        replace(chart, name=f"{chart.name}_{side.letter.lower()}", title=f"{side.letter}: {chart.title}")
        for charts in zip(*(search_charts(side.part.study) for side in (one, two)), strict=False)
        for side, chart in zip((one, two), charts, strict=True)
    ]
    title = f"{one.name} against {two.name}"
    page = filled(
        "compare.html.j2",
        drawn,
        title=title,
        sides=(one, two),
        findings=[_finding(one, two, pair) for pair in pairs],
        unlike=unlike(one, two, pairs),
        tables=shown,
        charts=drawn,
        environments=[(side.letter, environment) for side in (one, two) for environment in environments(side.view)],
    )
    target = one.view.path / "comparison.html" if out is None else Path(out)
    target = target / "comparison.html" if target.is_dir() else target
    all_tables = [*shown, *one.part.tables(), *two.part.tables()]
    write_page(target, page, drawn, "-compared", {tables: tables_text(all_tables, title, tables)} if tables else {})
    return target


def _side(letter: str, store: Path, recipe: str | None) -> Side:
    view = read_one_recipe(store, recipe)
    part = search_part(view)
    if part is None:
        raise InputError("no attack search in this store", file=store, expected="a store in which a search finished")
    name = visible(f"{letter}: {view.path.resolve().name}")
    return Side(letter, name, view, part, search_facts(part))


def pairs_of(a: SearchStudy, b: SearchStudy) -> list[Pair]:
    """Arms of the same defense, settings, guard and threat model; and of each side the one that is left, if it is one
    defended model.
    """
    pairs = _alike(a, b, "base") or _alike(a, b)
    paired = {arm for pair in pairs for arm in pair}
    left = [[arm for arm in study.arms if arm not in paired and study.control(arm) is not None] for study in (a, b)]
    left = [
        of_side or [arm for arm in study.arms if arm not in paired and len(study.arms) == 1]
        for of_side, study in zip(left, (a, b), strict=True)
    ]
    return [*pairs, Pair(left[0][0], left[1][0])] if [len(of_side) for of_side in left] == [1, 1] else pairs


def _alike(a: SearchStudy, b: SearchStudy, *also: str) -> list[Pair]:
    keyed = []
    for study in (a, b):
        firsts = {arm: study.of(arm)[0] for arm in study.arms}
        settings = {arm: [arm.defense, dict(arm.params), arm.guard, firsts[arm].threat_model] for arm in study.arms}
        keyed.append(
            {canonical([*settings[arm], *(getattr(firsts[arm], name) for name in also)]): arm for arm in study.arms}
        )
    return [Pair(arm, keyed[1][key]) for key, arm in keyed[0].items() if key in keyed[1]]


def cost_comparison(one: Side, two: Side, pairs: list[Pair]) -> Table:
    """Cost to break in both stores, on every axis, and the ratio."""
    columns = [Column("Defense", numeric=False), Column("Counted in", numeric=False)]
    columns += [Column(one.name), Column(two.name), Column("A / B"), Column("Runs")]
    rows = []
    for pair in pairs:
        for axis in (*AXES, TRIALS):
            ours, theirs = _cost(one, pair.ours, axis), _cost(two, pair.theirs, axis)
            if NOTHING not in (ours, theirs):
                seeds = min(len(one.part.study.of(pair.ours)), len(two.part.study.of(pair.theirs)))
                found = cost_ratio_of(one, two, pair, axis)
                runs = [
                    len(side.part.study.costs(arm, axis).values) for side, arm in zip((one, two), pair, strict=True)
                ]
                compared = Cell(ratio_text(found), ratio_interval_text(found, seeds), found)
                rows.append(
                    [Cell(pair.label), Cell(axis.title), ours, theirs, compared, Cell(f"{runs[0]} / {runs[1]}")]
                )
    note = (
        "Medians by Kaplan and Meier; “>” where fewer than half broke. A / B: ratio of medians, 95% bootstrap over "
        "seeds and the runs of each, seeds of the same name drawn together; “≥” where A's was not reached, a dash "
        "where B's was not. Above 1, A's costs more to break. Wall time is only comparable on the same machine."
    )
    return Table("Cost to break, side by side", columns, rows, note)


def harm_comparison(one: Side, two: Side, pairs: list[Pair]) -> Table:
    """Bounded harmful score in both stores, and the paired difference on the same prompts."""
    columns = [Column("Defense", numeric=False), Column(one.name), Column(two.name), Column("A − B")]
    rows = []
    for pair in pairs:
        found = difference(one.part.study, pair.ours, two.part.study, pair.theirs)
        cells = [_harm(harm(one.part.study, pair.ours)), _harm(harm(two.part.study, pair.theirs))]
        rows.append([Cell(pair.label), *cells, _difference(found)])
    note = (
        "The chosen attack's highest harmful score at a point that is useful enough, on held-out prompts, mean over "
        "seeds and re-runs. A − B: on the same prompts, 95% bootstrap over prompts and seeds; below 0, A is less "
        "harmful."
    )
    return Table("Harmful score, bounded by utility, side by side", columns, rows, note)


def cost_ratio_of(one: Side, two: Side, pair: Pair, axis: Axis) -> CostRatio | None:
    """Median cost of A over that of B."""
    return ratio_of(one.part.study.costs(pair.ours, axis), two.part.study.costs(pair.theirs, axis))


def unlike(one: Side, two: Side, pairs: list[Pair]) -> list[str]:
    """In what the two stores' searches differ beside the defense, so that numbers are not of the same attack."""
    told = []
    a, b = one.part.study, two.part.study
    for what, values in (
        ("trials per search", [{str(len(s.trials)) for s in study.searches} for study in (a, b)]),
        ("re-runs", [{str(len(s.reruns)) for s in study.searches} for study in (a, b)]),
        ("threshold of harm", [{f"{s.bound.threshold:g}" for s in study.searches} for study in (a, b)]),
        ("utility bound", [{rate(s.bound.utility) for s in study.searches} for study in (a, b)]),
        ("measure of utility", [{s.bound.metric for s in study.searches} for study in (a, b)]),
        ("base model", [{s.base for s in study.searches} for study in (a, b)]),
        ("threat model", [{value_text("threat_model", s.threat_model) for s in study.searches} for study in (a, b)]),
        ("judge", [{study.judges[0]} for study in (a, b)]),
    ):
        if values[0] != values[1]:
            sides = [listed(sorted(of_side)) for of_side in values]
            told.append(visible(f"A and B differ in {what}: {sides[0]} against {sides[1]}."))
    paired = {arm for pair in pairs for arm in pair}
    for side in (one, two):
        alone = [arm.label for arm in side.part.study.arms if arm not in paired]
        told += [f"Only in {side.letter}: {listed(alone)}."] if alone else []
    return told


def _finding(one: Side, two: Side, pair: Pair) -> str:
    found = cost_ratio_of(one, two, pair, STEPS)
    told = f"{pair.label}: "
    seeds = min(len(one.part.study.of(pair.ours)), len(two.part.study.of(pair.theirs)))
    if found is None or found.value is None:
        told += "costs cannot be put in proportion, because B's median was not reached or was zero"
    else:
        least = "at least " if found.at_least else ""
        told += f"breaking A's takes {least}{times(found.value)} times the steps of B's"
        told += f" ({ratio_interval_text(found, seeds)})"
        if seeds > 1 and (found.low or 0) <= 1 and (found.high is None or found.high >= 1):
            told += ", which leaves open which costs more"
    harmed = difference(one.part.study, pair.ours, two.part.study, pair.theirs)
    if isinstance(harmed, str):
        return f"{told}. No paired difference in harm: {harmed}."
    return f"{told}. Bounded harmful score, A − B: {_signed(harmed)} over {count(harmed.n, 'prompt')}."


def _cost(side: Side, arm: Arm, axis: Axis) -> Cell:
    costs, cost = side.part.study.costs(arm, axis), side.part.study.median(arm, axis)
    return NOTHING if cost is None else Cell(cost_text(axis, cost, costs), cost_interval(axis, cost, costs), cost)


def _harm(found: Harm | None) -> Cell:
    if found is None:
        return NOTHING
    interval = f"95% CI {found.interval.low:.2f}–{found.interval.high:.2f}, " if found.interval else ""
    return Cell(rate(found.value), interval + found.over, found)


def _difference(found: Estimate | str) -> Cell:
    if isinstance(found, str):
        return Cell("–", found)
    text, _, interval = _signed(found).partition(" (")
    return Cell(text, f"{interval.rstrip(')')}, {count(found.n, 'prompt')}", found)


def _signed(found: Estimate) -> str:
    def one(value: float) -> str:
        rounded = round(value, 2) + 0.0
        return f"{'+' if rounded > 0 else '−' if rounded < 0 else ''}{abs(rounded):.2f}"

    bounds = f" (95% CI {one(found.interval.low)} to {one(found.interval.high)})" if found.interval else ""
    return one(found.value) + bounds
