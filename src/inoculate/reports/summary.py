"""A store in tables and a few sentences: the headline, before the attack, after it; few-shot studies by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from inoculate.evals.statistics import Interval, mean_interval, wilson
from inoculate.reports.caveats import how_breaks_were_read, warnings
from inoculate.reports.comparison import Comparison, compare, ratio_in, reference_of
from inoculate.reports.cost_table import cost_finding, cost_studies, cost_table
from inoculate.reports.few_shot import Study
from inoculate.reports.few_shot_findings import Answer, answers
from inoculate.reports.few_shot_findings import caveats as few_shot_caveats
from inoculate.reports.few_shot_gather import studies
from inoculate.reports.few_shot_tables import tables as few_shot_tables
from inoculate.reports.findings import by_another_judge, fate, interval_text, ratio_text, sentence, without_harmful_data
from inoculate.reports.gather import gather
from inoculate.reports.mechanism import mechanism
from inoculate.reports.runs import Grid, Point, Run, harmful
from inoculate.reports.search_part import SearchPart, search_part
from inoculate.reports.store_view import StoreView
from inoculate.reports.tables import Cell, Column, Table
from inoculate.reports.wording import key_name, listed, number, rate, setting_text, value_text

NOTHING = Cell("–")
INTERVALS = (
    "Second lines are 95% intervals: Student's t over seeds, or Wilson's over prompts where there is one seed "
    "or all seeds agree."
)
MOUNTED_ACCURACY, ABILITIES = "mounted_finetune_accuracy", "ordinary_accuracy"
_BEFORE = (
    ("harmful_score", "Harmful score"),
    ("over_refusal_rate", "Over-refusal"),
    ("finetune_accuracy", "Task accuracy"),
    (ABILITIES, "Ordinary accuracy"),
    ("incoherent_rate", "Incoherent"),
)


class Rate(NamedTuple):
    """A mean rate over seeds."""

    mean: float
    interval: Interval | None
    seeds: int
    n: int | None
    """Prompts per seed."""


class FewShotPart(NamedTuple):
    """What a report says about one few-shot study."""

    study: Study
    answers: tuple[Answer, ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Summary:
    """What a report says, before it is laid out."""

    grid: Grid
    comparisons: tuple[Comparison, ...]
    findings: tuple[str, ...]
    caveats: tuple[str, ...]
    headline: Table
    before: Table
    after: tuple[tuple[str, Table], ...]
    """Judge → table; the first is the judge of the headline."""
    mechanism: Table | None = None
    """What a mounted vector leaves to learn, where one was."""
    few_shot: tuple[FewShotPart, ...] = ()
    """Few-shot studies; their rows are in none of the tables above."""
    costs: tuple[Table, ...] = ()
    """What a step of each defense costs, by model; these rows too are in no other table."""
    search: SearchPart | None = None
    """Attack searches; their rows are in none of the tables above."""

    @property
    def apart(self) -> bool:
        """Whether something was measured that has a part of its own."""
        return bool(self.few_shot or self.costs or self.search)

    def tables(self) -> tuple[Table, ...]:
        """All tables that have rows, in the page's order."""
        found = [*(self.search.tables() if self.search else ()), self.headline, self.before]
        found += [after for _, after in self.after] + ([self.mechanism] if self.mechanism else [])
        found += [table for part in self.few_shot for table in part.tables]
        return tuple(table for table in (*found, *self.costs) if table.rows)


def summarize(view: StoreView) -> Summary:
    """Tables and findings from a store's records; the first judge that appears is the headline's."""
    grid = gather(view.records)
    few_shot = tuple(FewShotPart(study, answers(study), few_shot_tables(study)) for study in studies(view.records))
    judge, costs, search = grid.judges[0], cost_studies(view.records), search_part(view)
    comparisons = compare(grid, judge)
    findings = [sentence(grid, judge, found) for found in comparisons]
    if not comparisons and grid.attacks:
        findings = [fate(grid, judge, arm) for arm in grid.arms]
    elif (
        not grid.attacks and not any(part.study.tasks() for part in few_shot) and (grid.before or not (costs or search))
    ):
        findings = ["No attack was run: what follows is the models as they are, and says nothing about their hardness."]
    for other in grid.judges[1:]:  # two judges of one model can say opposite things, and the reader must see it
        findings += [text for text in (by_another_judge(grid, other),) if text]
    findings += [text for text in (without_harmful_data(grid, judge), _cost_of_safety(grid, judge)) if text]
    findings += [text for text in map(cost_finding, costs) if text]
    return Summary(
        grid=grid,
        comparisons=tuple(comparisons),
        findings=tuple(findings),
        caveats=(*warnings(view, grid), *(text for part in few_shot for text in few_shot_caveats(part.study))),
        headline=_headline(grid, judge),
        before=_before(grid, judge),
        after=tuple((name, _after(grid, name)) for name in grid.judges) if grid.attacks else (),
        mechanism=mechanism(grid),
        few_shot=few_shot,
        costs=tuple(map(cost_table, costs)),
        search=search,
    )


def mean_rate(points: Sequence[Point | None]) -> Rate | None:
    """The mean of a rate over seeds and its interval; None without a measurement."""
    found = [point for point in points if point is not None]
    if not found:
        return None
    mean, interval, seeds = mean_interval([point.value for point in found])
    n = min((point.n for point in found if point.n), default=None)
    if interval is not None and interval.low < interval.high:
        interval = Interval(max(0.0, interval.low), min(1.0, interval.high))
    else:
        interval = wilson(round(mean * n), n) if n else None
    return Rate(mean, interval, seeds, n)


def _cell(points: Sequence[Point | None]) -> Cell:
    found = mean_rate(points)
    if found is None:
        return NOTHING
    detail = f"{found.interval.low:.2f}–{found.interval.high:.2f}" if found.interval else ""
    return Cell(rate(found.mean), detail, found)


def _headline(grid: Grid, judge: str) -> Table:
    settings = [setting for setting in grid.settings() if harmful(setting)]
    varying = grid.varying(settings)
    keys = [key for key in grid.keys if key in varying or key == "learning_rate"]
    heads = [Column("Defense", numeric=False), *(Column(key_name(key)) for key in keys)]
    heads += [Column("Steps to break"), Column("Times the reference"), Column("Broke")]
    rows = []
    for arm in grid.arms:
        reference = reference_of(grid, arm)
        for setting in settings:
            runs = grid.cell(arm, setting)
            if not runs:
                continue
            ratio = None if arm == reference else ratio_in(grid, judge, arm, reference, setting)
            compared = Cell("reference" if arm == reference else "–")
            if ratio is not None:
                compared = Cell(ratio_text(ratio), interval_text(ratio), ratio)
            rows.append([Cell(arm.label), *_values(setting, keys), _steps(runs, judge), compared, _broke(runs, judge)])
    shares = {share for setting in settings if (share := setting.get("poison_ratio")) is not None}
    at = f" (p = {number(shares.pop())})" if len(shares) == 1 else ""
    caption = f"Attack steps until the model breaks, one number per seed{at}"
    return Table(caption, heads, rows, how_breaks_were_read(grid, judge))


def _before(grid: Grid, judge: str) -> Table:
    measures = [pair for pair in _BEFORE if pair[0] != ABILITIES or any(ABILITIES in run.curves for run in grid.before)]
    heads = [Column("Defense", numeric=False), *(Column(title) for _, title in measures), Column("Seeds")]
    rows = []
    for arm in grid.arms:
        runs = [run for run in grid.before if run.arm == arm]
        if runs:
            cells = [_cell([run.at_start(metric, judge) for run in runs]) for metric, _ in measures]
            rows.append([Cell(arm.label), *cells, _seeds(runs)])
    prompts = {title.lower(): n for metric, title in measures if (n := _prompts(grid.before, metric, judge))}
    each = ", ".join(f"{title} {n}" for title, n in prompts.items())
    alike = len(set(prompts.values())) == 1
    counted = f" Prompts per seed: {next(iter(prompts.values())) if alike else each}." if prompts else ""
    return Table("The models as the attacker receives them", heads, rows, INTERVALS + counted)


def _after(grid: Grid, judge: str) -> Table:
    settings = grid.settings()
    keys = _columns(grid, settings)
    heads = [Column("Defense", numeric=False), *(Column(key_name(key)) for key in keys), Column("Steps to break")]
    heads += [Column("Harmful score at the break"), Column("Harmful score at the end")]
    heads += [Column("Task accuracy at the break"), Column("Task accuracy at the end")]
    mounted = any(MOUNTED_ACCURACY in run.curves for run in grid.attacks)
    heads += [Column("Task accuracy while mounted, at the end")] if mounted else []
    able = any(ABILITIES in run.curves for run in grid.attacks)
    heads += [Column("Ordinary accuracy at the end")] if able else []
    heads += [Column("Over-refusal at the end"), Column("Incoherent at the end"), Column("Seeds")]
    rows = []
    for arm in grid.arms:
        for setting in settings:
            runs = grid.cell(arm, setting)
            if runs:
                at_break, at_end = _measures(runs, judge, Run.at_break), _measures(runs, judge, Run.at_end)
                row = [Cell(arm.label), *_values(setting, keys), _steps(runs, judge)]
                row += [at_break("harmful_score"), at_end("harmful_score")]
                row += [at_break("finetune_accuracy"), at_end("finetune_accuracy")]
                row += [at_end(MOUNTED_ACCURACY)] if mounted else []
                row += [at_end(ABILITIES)] if able else []
                rows.append([*row, at_end("over_refusal_rate"), at_end("incoherent_rate"), _seeds(runs)])
    shared = (name for name in ("attack", "adapter_mode", "num_samples") if grid.shared.get(name) is not None)
    same = [setting_text(name, grid.shared[name]) for name in shared]
    ends = sorted({max(curve) for run in grid.attacks if not run.lost and (curve := run.curve("harmful_score", judge))})
    length = f" The end is step {listed([str(end) for end in ends])}." if ends else ""
    everywhere = f" In all rows: {', '.join(same)}." if same else ""
    return Table("Every attack that was run, benign ones (p = 0) too", heads, rows, INTERVALS + length + everywhere)


def _measures(runs: Sequence[Run], judge: str, when: Any) -> Any:
    return lambda metric: _cell([when(run, metric, judge) for run in runs])


def _columns(grid: Grid, settings: Sequence[dict[str, Any]]) -> list[str]:
    """p and learning rate always, other settings where they vary."""
    varying = grid.varying()
    return [key for key in grid.keys if settings and (key in grid.keys[:2] or key in varying)]


def _values(setting: dict[str, Any], keys: Sequence[str]) -> list[Cell]:
    return [Cell(value_text(key, setting.get(key)), value=setting.get(key)) for key in keys]


def _steps(runs: Sequence[Run], judge: str) -> Cell:
    """Each seed's steps, once where many agree; `> 600` where a run outlasted the watch."""
    texts = []
    for run in runs:
        broke = run.broke(judge)
        if broke is None:
            texts.append(run.lost or "–")
        else:
            texts.append(f"{'> ' if broke.censored else ''}{number(broke.steps)}")
    alike = len(texts) > 2 and len(set(texts)) == 1
    return Cell(f"all {texts[0]}" if alike else " / ".join(texts), value=[run.broke(judge) for run in runs])


def _broke(runs: Sequence[Run], judge: str) -> Cell:
    ended = [broke for run in runs if (broke := run.broke(judge))]
    return Cell(f"{sum(not broke.censored for broke in ended)} of {len(ended)}", _lost_text(runs))


def _seeds(runs: Sequence[Run]) -> Cell:
    return Cell(str(len(runs)), _lost_text(runs), len(runs))


def _lost_text(runs: Sequence[Run]) -> str:
    lost = [run.lost for run in runs if run.lost]
    return ", ".join(f"{lost.count(kind)} {kind}" for kind in dict.fromkeys(lost))


def _prompts(runs: Sequence[Run], metric: str, judge: str) -> str:
    found = sorted({point.n for run in runs if (point := run.at_start(metric, judge)) and point.n})
    return "–".join(str(n) for n in dict.fromkeys((found[0], found[-1]))) if found else ""


def _cost_of_safety(grid: Grid, judge: str) -> str:
    parts = []
    for arm in grid.arms:
        found = mean_rate([run.at_start("over_refusal_rate", judge) for run in grid.before if run.arm == arm])
        if found is not None:
            parts.append(f"{arm.label} {100 * round(found.mean, 2):.0f}%")
    return f"Ordinary requests refused before the attack: {', '.join(parts)}." if parts else ""
