"""Tables of attack searches: cost on every axis, the worst attack found, before and after it, trials, judges."""

from __future__ import annotations

from inoculate.evals.statistics import Estimate, mean_interval
from inoculate.reports.runs import Arm
from inoculate.reports.search_findings import unusable
from inoculate.reports.search_harm import agreements
from inoculate.reports.search_wording import (
    amount,
    cost_interval,
    cost_text,
    ratio_interval_text,
    ratio_text,
    ratios_by_seed_text,
)
from inoculate.reports.searches import AXES, STEPS, TRIALS, Axis, Search, SearchStudy
from inoculate.reports.tables import Cell, Column, Table
from inoculate.reports.wording import listed, rate, visible

NOTHING = Cell("–")
_DEFENSE = Column("Defense", numeric=False)
_AROUND = (
    ("utility", "Utility"),
    ("harmful_score", "Harmful score"),
    ("over_refusal_rate", "Over-refusal"),
    ("incoherent_rate", "Incoherent, restricted"),
    ("ordinary_incoherent_rate", "Incoherent, ordinary"),
    ("finetune_accuracy", "Task accuracy"),
)
_STATUSES = (("ok", "Complete"), ("pruned", "Pruned"), ("diverged", "Diverged"), ("failed", "Failed"))


def cost_table(study: SearchStudy) -> Table:
    """Every defense on every axis of cost."""
    columns = [_DEFENSE, Column("Counted in", numeric=False), Column("Cost to break"), Column("× undefended")]
    columns += [Column("× in each seed"), Column("Runs"), Column("Not broken"), Column("Diverged")]
    rows = [_cost_row(study, arm, axis) for arm in study.arms for axis in (*AXES, TRIALS) if _known(study, arm, axis)]
    note = (
        "Cost: median over seeds and re-runs by Kaplan and Meier, with its pointwise 95% interval, which takes re-runs "
        "of a seed for independent; “>” where fewer than half broke. Ratio: median over the undefended model's median, "
        "95% bootstrap over seeds and the runs of each, as wide as so few seeds ask for; “≥” where the defense's "
        "median was not reached, “–” where the control's was not. A run that diverged before it broke is in neither. A "
        "break is known to within the steps between two measurements. × in each seed: the same ratio, seed by seed; "
        "where controls differ much, three seeds that agree can have a wide interval. Trials of search: until the "
        "first that broke the model on the attacker's own prompts, one number per seed."
    )
    return Table("Cost to break, on every axis", columns, rows, note)


def _known(study: SearchStudy, arm: Arm, axis: Axis) -> bool:
    costs = study.costs(arm, axis)
    return bool(costs.values) or (costs.lost > 0 and axis == STEPS)


def _cost_row(study: SearchStudy, arm: Arm, axis: Axis) -> list[Cell]:
    costs, cost, ratio = study.costs(arm, axis), study.median(arm, axis), study.ratio(arm, axis)
    seeds, by_seed = len(set(costs.seeds)), study.ratios_by_seed(arm, axis)
    compared = Cell(ratio_text(ratio), ratio_interval_text(ratio, seeds), ratio)
    dead = unusable(study, arm)
    if dead and len(dead) == len(study.of(arm)):
        compared = Cell("unusable", "before any attack: no merit")
    elif study.control(arm) is None:
        compared = Cell("reference" if any(study.control(other) == arm for other in study.arms) else "–")
    return [
        Cell(arm.label),
        Cell(axis.title),
        Cell(cost_text(axis, cost, costs), cost_interval(axis, cost, costs), cost),
        compared,
        Cell("–" if compared.text == "unusable" else ratios_by_seed_text(by_seed), value=by_seed),
        Cell(str(len(costs.values)), value=len(costs.values)),
        Cell(str(sum(costs.censored)), value=sum(costs.censored)),
        Cell(str(costs.lost), value=costs.lost),
    ]


def around_table(study: SearchStudy) -> Table:
    """The model before the attack, and where it was most harmful and useful."""
    shown = [(metric, title) for metric, title in _AROUND if any(_present(s, metric) for s in study.searches)]
    columns = [_DEFENSE, *(Column(f"{title}: before → after") for _, title in shown), Column("Utility bound")]
    rows = []
    for arm in study.arms:
        cells = [_around(study, arm, metric) for metric, _ in shown]
        bounds = sorted({round(search.bound.utility, 4) for search in study.of(arm)})
        dead = unusable(study, arm)
        why = f"unusable before any attack: {' / '.join(dict.fromkeys(dead))}" if dead else ""
        rows.append([Cell(arm.label, why), *cells, Cell("–".join(dict.fromkeys(map(rate, (bounds[0], bounds[-1])))))])
    metric = listed(sorted({search.bound.metric.replace("_", " ") for search in study.searches}))
    note = (
        "Held-out prompts, means over seeds and re-runs; second lines are 95% intervals over seeds (Student's t). "
        "After: at each run's most harmful useful step, or where none is useful, at its most useful one. Utility is "
        f"{metric}. A rate of refusal says nothing of a model that babbles, so incoherence stands beside it."
    )
    return Table("Before the attack, and after it", columns, rows, note)


def _present(search: Search, metric: str) -> bool:
    return metric in search.before.by or any(metric in rerun.measured.by for rerun in search.reruns)


def _around(study: SearchStudy, arm: Arm, metric: str) -> Cell:
    judge, before, after = study.judges[0], [], []
    for search in study.of(arm):
        if (prior := search.prior(metric, judge)) is not None:
            before.append(prior)
        ends = [point.value for r in search.reruns if (point := r.measured.at(metric, r.worst, judge))]
        after += [sum(ends) / len(ends)] if ends else []
    ends = [mean_interval(values) if values else None for values in (before, after)]
    text = " → ".join("–" if end is None else rate(end.value) for end in ends)
    detail = " → ".join(_bounds(end) for end in ends) if any(_bounds(end) != "–" for end in ends) else ""
    return Cell(text, detail, tuple(ends))


def _bounds(found: Estimate | None) -> str:
    if found is None or found.interval is None or found.interval.low == found.interval.high:
        return "–"  # seeds that agree do not make the interval a point
    return f"{max(0.0, found.interval.low):.2f}–{min(1.0, found.interval.high):.2f}"


def trials_table(study: SearchStudy) -> Table:
    """How trials ended, and what searching took."""
    columns = [_DEFENSE, Column("Seeds"), Column("Trials"), *(Column(title) for _, title in _STATUSES), Column("Broke")]
    columns += [Column("Search FLOPs"), Column("Search wall time"), Column("Outside training and generation")]
    rows = []
    for arm in study.arms:
        searches = study.of(arm)
        trials = [trial for search in searches for trial in search.trials]
        counts = [sum(trial.status == status for trial in trials) for status, _ in _STATUSES]
        rows.append(
            [
                Cell(arm.label),
                Cell(str(len(searches)), value=len(searches)),
                Cell(str(len(trials)), value=len(trials)),
                *(Cell(str(n), value=n) for n in counts),
                Cell(str(sum(trial.broke for trial in trials)), value=sum(trial.broke for trial in trials)),
                _total(searches, "search_flops", AXES[3]),
                _total(searches, "search_wall_s", AXES[4]),
                _share(searches),
            ]
        )
    note = (
        "Sums over seeds. Diverged: a loss or gradient was not finite; such a trial counts, with what it reached "
        "before. Failed: something went wrong that says nothing of the attack; it is made up for. Broke: on the "
        "attacker's own prompts. Outside: share of the trials' wall time that was neither training nor measuring."
    )
    return Table("The trials", columns, rows, note)


def _total(searches: list[Search], metric: str, axis: Axis) -> Cell:
    found = [search.totals[metric].value for search in searches if metric in search.totals]
    return Cell(amount(axis, sum(found)), value=sum(found)) if found else NOTHING


def _share(searches: list[Search]) -> Cell:
    pairs = [
        (s.totals["outside_share"].value, s.totals["search_wall_s"].value)
        for s in searches
        if "outside_share" in s.totals and "search_wall_s" in s.totals
    ]
    total = sum(wall for _, wall in pairs)
    if not total:
        return NOTHING
    share = sum(part * wall for part, wall in pairs) / total
    return Cell(f"{100 * share:.1f}%", value=share)


def agreement_table(study: SearchStudy) -> Table | None:
    """Cohen's kappa of each pair of judges; None with fewer than two."""
    rows = []
    for arm in study.arms:
        for found in agreements(study, arm):
            kappa = Cell("–", "both always say the same") if found.kappa is None else Cell(f"{found.kappa:.2f}")
            pair = visible(" and ".join(found.judges))
            cells = [Cell(pair), Cell(kappa.text, kappa.detail, found.kappa), Cell(rate(found.same), value=found.same)]
            rows.append([Cell(arm.label), *cells, Cell(str(found.n), value=found.n)])
    columns = [
        _DEFENSE,
        Column("Judges", numeric=False),
        Column("Cohen's κ"),
        Column("Same verdict"),
        Column("Responses"),
    ]
    note = (
        "Harmful or not, on all responses that were kept of the chosen attack's re-runs. κ is agreement beyond chance: "
        "1 is full, 0 what chance gives. Responses of one run are not independent."
    )
    return Table("Whether judges agree", columns, rows, note) if rows else None
