"""One self-contained HTML file about a store, and its charts as PNG and SVG beside it."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from inoculate.core.errors import InputError
from inoculate.reports.charts import Chart, charts
from inoculate.reports.few_shot_charts import few_shot_charts
from inoculate.reports.findings import interval_text, ratio_text
from inoculate.reports.gather import is_cost, is_few_shot
from inoculate.reports.runs import Grid
from inoculate.reports.samples import samples
from inoculate.reports.store_view import StoreView, read_store, recipes_in
from inoculate.reports.summary import Summary, summarize
from inoculate.reports.wording import count, listed, number, visible

_HERE = Path(__file__).parent
_THREATS = {
    "open_weights": "Open weights: the attacker holds the weights and may train them in any way.",
    "service": "Fine-tuning service: the attacker hands in data; the provider trains, and its defense stays in place.",
}


def write_report(store: Path, out: Path | None = None, recipe: str | None = None) -> Path:
    """Write the report and return its path.

    Args:
        store: a store, or one stage's folder.
        out: the file to write; by default `report.html` in the store, or `report-<recipe>.html`.
        recipe: only this recipe; needed where the store holds several, since tables do not mix them.

    Raises:
        InputError: nothing to report (see `read_store`), several recipes and no choice, or the file cannot be written.
    """
    names = recipes_in(store)
    if recipe is None and len(names) > 1:
        raise InputError(
            "the store holds several recipes, and a table is of one",
            file=store,
            field="--recipe",
            expected="one of " + ", ".join(names),
        )
    view = read_store(store, recipe)
    summary = summarize(view)
    made = charts(summary.grid, summary.grid.judges[0])
    of_studies = [few_shot_charts(part.study, i) for i, part in enumerate(summary.few_shot, start=1)]
    page = render(view, summary, made, of_studies)
    suffix = "" if recipe is None else "-" + recipe.replace("/", "--")
    target = view.path / f"report{suffix}.html" if out is None else Path(out)
    target = target / f"report{suffix}.html" if target.is_dir() else target
    try:
        (target.parent / "charts").mkdir(parents=True, exist_ok=True)
        for chart in (*made, *(chart for drawn in of_studies for chart in drawn)):
            _write_images(target.parent / "charts", f"{chart.name}{suffix}", chart)
        _write(target, page.encode("utf-8", "replace"))
    except OSError as error:
        raise InputError(f"the report cannot be written: {error.strerror}", file=target, field="--out") from None
    return target


def render(view: StoreView, summary: Summary, made: Sequence[Chart], of_studies: Sequence[Sequence[Chart]]) -> str:
    """The page, with charts of attacks and of each few-shot study.

    Its scripts are named by hash in its security policy, so that no other script can run.
    """
    import yaml
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    env = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters["visible"] = visible
    scripts = [_vega_bundle(), (_HERE / "page.js").read_text(encoding="utf-8")] if made or any(of_studies) else []
    return env.get_template("template.html.j2").render(
        title=_title(view),
        questions=[visible(m["question"]) for m in view.manifests if m.get("question")],
        descriptions=[visible(m["description"]) for m in view.manifests if m.get("description")],
        threats=_threats(view, summary),
        facts=_facts(view, summary),
        summary=summary,
        cards=_cards(summary),
        charts=made,
        of_studies=of_studies,
        samples=samples(view, summary.grid, summary.grid.judges[0]),
        manifests=view.manifests,
        recipes=[visible(yaml.safe_dump(m.get("recipe"), sort_keys=False, allow_unicode=True)) for m in view.manifests],
        stages=view.stages,
        environments=_environments(view),
        # Unescaped: our own script and Vega's. Nothing from the store is in them.
        scripts=[Markup(script) for script in scripts],
        hashes=[_csp_hash(script) for script in scripts],
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
        text = _THREATS.get(name, visible(name))
        told.append(f"{text} Here: {listed(who)}." if len(names) > 1 else text)
    return told


def _facts(view: StoreView, summary: Summary) -> list[tuple[str, str]]:
    return [*(_grid_facts(view, summary.grid) if summary.grid.arms else []), *_few_shot_facts(summary)]


def _grid_facts(view: StoreView, grid: Grid) -> list[tuple[str, str]]:
    facts = [("Defenses", listed([arm.label for arm in grid.arms]))]
    rows = [record for record in view.records if not is_few_shot(record) and not is_cost(record)]
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


def _environments(view: StoreView) -> list[dict[str, Any]]:
    """Each environment once: the recipes', or else the stages'."""
    found = [m["environment"] for m in view.manifests if m.get("environment")]
    found = found or [
        stage.about["environment"] for stage in view.stages if stage.about and "environment" in stage.about
    ]
    return [environment for i, environment in enumerate(found) if environment not in found[:i]]


@cache
def _vega_bundle() -> str:
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _write_images(folder: Path, name: str, chart: Chart) -> None:
    import vl_convert

    inner, config = chart.spec["spec"], {**chart.spec["config"], "background": "white"}
    seen = [layer for layer in inner["layer"] if layer["mark"].get("opacity") != 0]
    svg = vl_convert.vegalite_to_svg({**chart.spec, "config": config, "spec": {**inner, "layer": seen}})
    _write(folder / f"{name}.svg", svg.encode("utf-8"))
    _write(folder / f"{name}.png", vl_convert.svg_to_png(svg, scale=2))


def _write(path: Path, content: bytes) -> None:
    """Write so that a reader sees the old file or the new one."""
    handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(fresh).chmod(0o644)
        Path(fresh).replace(path)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise
