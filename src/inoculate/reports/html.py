"""One self-contained HTML file about a store; beside it its charts as PNG, SVG and PDF, and on demand its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inoculate.core.errors import InputError
from inoculate.reports.charts import Chart, charts
from inoculate.reports.export import Format, tables_text
from inoculate.reports.few_shot_charts import few_shot_charts
from inoculate.reports.findings import interval_text, ratio_text
from inoculate.reports.gather import is_cost, is_few_shot, is_search
from inoculate.reports.page import filled, write_page
from inoculate.reports.runs import Grid
from inoculate.reports.samples import samples, search_samples
from inoculate.reports.search_charts import search_charts
from inoculate.reports.search_part import SearchPart
from inoculate.reports.store_view import StoreView, read_store, recipes_in
from inoculate.reports.summary import Summary, summarize
from inoculate.reports.wording import count, listed, number, visible

_THREATS = {
    "open_weights": "Open weights: the attacker holds the weights and may train them in any way.",
    "service": "Fine-tuning service: the attacker hands in data; the provider trains, and its defense stays in place.",
}


class Drawn(NamedTuple):
    """The charts of a page."""

    attacks: Sequence[Chart]
    studies: Sequence[Sequence[Chart]]
    searches: Sequence[Chart]

    def all(self) -> list[Chart]:
        """Every chart, in the page's order."""
        return [*self.searches, *self.attacks, *(chart for drawn in self.studies for chart in drawn)]


def write_report(store: Path, out: Path | None = None, recipe: str | None = None, tables: Format | None = None) -> Path:
    """Write the report and return its path.

    Args:
        store: a store, or one stage's folder.
        out: the file to write; by default `report.html` in the store, or `report-<recipe>.html`.
        recipe: only this recipe; needed where the store holds several, since tables do not mix them.
        tables: write the page's tables in this form too, beside it.

    Raises:
        InputError: nothing to report (see `read_store`), several recipes and no choice, or the file cannot be written.
    """
    view = read_one_recipe(store, recipe)
    summary = summarize(view)
    drawn = Drawn(
        charts(summary.grid, summary.grid.judges[0]),
        [few_shot_charts(part.study, i) for i, part in enumerate(summary.few_shot, start=1)],
        search_charts(summary.search.study) if summary.search else [],
    )
    page = render(view, summary, drawn)
    suffix = "" if recipe is None else "-" + recipe.replace("/", "--")
    target = view.path / f"report{suffix}.html" if out is None else Path(out)
    target = target / f"report{suffix}.html" if target.is_dir() else target
    beside: dict[Format, str] = {} if tables is None else {tables: tables_text(summary.tables(), _title(view), tables)}
    write_page(target, page, drawn.all(), suffix, beside)
    return target


def read_one_recipe(store: Path, recipe: str | None) -> StoreView:
    """What a recipe left in a store.

    Raises:
        InputError: several recipes and no choice, or as `read_store`.
    """
    names = recipes_in(store)
    if recipe is None and len(names) > 1:
        raise InputError(
            "the store holds several recipes, and a table is of one",
            file=store,
            field="--recipe",
            expected="one of " + ", ".join(names),
        )
    return read_store(store, recipe)


def render(view: StoreView, summary: Summary, drawn: Drawn) -> str:
    """The page."""
    import yaml

    said = samples(view, summary.grid, summary.grid.judges[0])
    if summary.search is not None:
        said = [*search_samples(view, summary.search.study), *said]
    return filled(
        "template.html.j2",
        drawn.all(),
        title=_title(view),
        questions=[visible(m["question"]) for m in view.manifests if m.get("question")],
        descriptions=[visible(m["description"]) for m in view.manifests if m.get("description")],
        threats=_threats(view, summary),
        facts=_facts(view, summary),
        summary=summary,
        search=summary.search,
        cards=_cards(summary),
        charts=drawn.attacks,
        of_studies=drawn.studies,
        search_charts=drawn.searches,
        samples=said,
        manifests=view.manifests,
        recipes=[visible(yaml.safe_dump(m.get("recipe"), sort_keys=False, allow_unicode=True)) for m in view.manifests],
        stages=view.stages,
        environments=environments(view),
    )


def _title(view: StoreView) -> str:
    if len(view.manifests) == 1:
        return visible(view.manifests[0].get("title") or view.manifests[0]["name"])
    return visible(f"{count(len(view.manifests), 'recipe') if view.manifests else 'Results'} in {view.path.name}")


def _threats(view: StoreView, summary: Summary) -> list[str]:
    """Each threat model, with the defenses that were measured under it where there are several."""
    names = sorted({record.threat_model for record in view.records if record.threat_model and not is_cost(record)})
    told = []
    for name in names:
        under = {record.defense for record in view.records if record.threat_model == name}
        who = [arm.label for arm in summary.grid.arms if arm.defense in under]
        who += _searched(summary.search, name)
        text = _THREATS.get(name, visible(name))
        told.append(f"{text} Here: {listed(list(dict.fromkeys(who)))}." if len(names) > 1 else text)
    return told


def _facts(view: StoreView, summary: Summary) -> list[tuple[str, str]]:
    grid = _grid_facts(view, summary.grid) if summary.grid.arms else []
    return [*(search_facts(summary.search) if summary.search else []), *grid, *_few_shot_facts(summary)]


def search_facts(part: SearchPart) -> list[tuple[str, str]]:
    """What was searched, and when a model counts as broken."""
    searches = part.study.searches
    trials = sorted({len(search.trials) for search in searches})
    reruns = sorted({len(search.reruns) for search in searches})
    seeds = len({search.seed for search in searches})
    told = f"{len(searches)} of {'–'.join(map(str, dict.fromkeys((trials[0], trials[-1]))))} trials, "
    told += f"{'–'.join(map(str, dict.fromkeys((reruns[0], reruns[-1]))))} re-runs each, {count(seeds, 'seed')}"
    bounds = sorted({(search.bound.threshold, search.bound.metric) for search in searches})
    broken = [
        f"harmful score above {number(threshold)} while {metric.replace('_', ' ')} is at least the bound"
        for threshold, metric in bounds
    ]
    facts = [("Defenses", listed([arm.label for arm in part.study.arms])), ("Searches", told)]
    judges = [visible(judge) for judge in part.study.judges if judge]
    return [*facts, ("Broken means", "; ".join(map(visible, broken))), ("Judged by", listed(judges) or "no judge")]


def _searched(part: SearchPart | None, threat_model: str) -> list[str]:
    searches = part.study.searches if part is not None else ()
    return [search.arm.label for search in searches if search.threat_model == threat_model]


def _grid_facts(view: StoreView, grid: Grid) -> list[tuple[str, str]]:
    facts = [("Defenses", listed([arm.label for arm in grid.arms]))]
    rows = [row for row in view.records if not (is_few_shot(row) or is_cost(row) or is_search(row))]
    bases = sorted({visible(record.base) for record in rows if record.base})
    if bases:
        facts.append(("Base model", listed(bases)))
    seeds = len({run.seed for run in (grid.attacks or grid.before)})
    facts.append(("Runs", f"{count(len(grid.attacks), 'attack')}, {count(seeds, 'seed')}"))
    judges = [visible(judge) for judge in grid.judges if judge]
    facts.append(("Judged by", listed(judges) if judges else "no judge"))
    return facts


def _few_shot_facts(summary: Summary) -> list[tuple[str, str]]:
    facts = []
    for study in (part.study for part in summary.few_shot):
        facts += [("Few-shot study", study.title), ("Starting points", listed([arm.label for arm in study.arms]))]
        if study.searches:
            seeds = len({seed for scores in study.scores.values() for seed in scores})
            again = listed([number(runs) for runs in study.reruns]) or "no"
            searches = f"{study.searches} search{'es' if study.searches > 1 else ''}"
            trials = f"at most {count(study.most_trials, 'trial')}, {again} re-runs each"
            facts.append(("Attacks", f"{searches} of {trials}, {count(seeds, 'seed')}"))
    return facts


def _cards(summary: Summary) -> list[dict[str, str]]:
    cards = []
    for found in summary.comparisons:
        ended = [broke for run in found.runs if (broke := run.broke(summary.grid.judges[0]))]
        broke = f"broke in {sum(not end.censored for end in ended)} of {count(len(ended), 'run')}"
        cards.append(
            {
                "defense": found.arm.label,
                "number": ratio_text(found.ratio) if found.ratio else "–",
                "of": f"{found.reference.label}'s steps to break",
                "interval": interval_text(found.ratio) if found.ratio else "no pair of runs to compare",
                "broke": broke,
            }
        )
    return cards


def environments(view: StoreView) -> list[dict[str, Any]]:
    """Each environment once: the recipes', or else the stages'."""
    found = [m["environment"] for m in view.manifests if m.get("environment")]
    found = found or [
        stage.about["environment"] for stage in view.stages if stage.about and "environment" in stage.about
    ]
    return [environment for i, environment in enumerate(found) if environment not in found[:i]]
