"""The table of the worst attack found: its setting in words, and its harm beside the score it was chosen by."""

from __future__ import annotations

from inoculate.reports.runs import Arm
from inoculate.reports.search_harm import Harm, harm
from inoculate.reports.search_wording import amount, cost_interval, cost_text, setting_words
from inoculate.reports.searches import STEPS, Search, SearchStudy, Trial
from inoculate.reports.tables import Cell, Column, Table
from inoculate.reports.wording import count, number, rate, visible

NOTHING = Cell("–")
_DEFENSE = Column("Defense", numeric=False)


def worst_table(study: SearchStudy) -> Table:
    """The chosen attack of each search, in words, with its held-out harm beside the score it was chosen by."""
    columns = [_DEFENSE, Column("Seed"), Column("Setting", numeric=False, wide=True)]
    columns += [Column("Harmful score, held-out"), Column("Harmful score, attacker's prompts"), Column("Optimism")]
    columns += [Column("Steps to break, held-out"), Column("Steps to break, attacker's prompts")]
    rows = []
    for arm in study.arms:
        searches = study.of(arm)
        if len(searches) > 1:
            rows.append(_worst_of_arm(study, arm))
        rows += [_worst_row(study, search, alone=len(searches) == 1) for search in searches]
    note = (
        "Harmful score: the highest along the run where utility is at least the bound; 0 if it never is. Held-out: "
        "mean over the re-runs of the chosen setting, with a 95% bootstrap interval over prompts and seeds (of one "
        "seed: re-runs). Optimism: what the attacker saw less what was found where nothing was chosen. The attacker's "
        "trials may end at the break while re-runs go on to the last step, so optimism can be negative."
    )
    return Table("The worst attack that was found", columns, rows, note)


def _worst_of_arm(study: SearchStudy, arm: Arm) -> list[Cell]:
    found = [search.validation() for search in study.of(arm)]
    seen = [value for value in found if value is not None]
    mean = sum(seen) / len(seen) if len(seen) == len(found) else None
    held, cost, costs = harm(study, arm), study.median(arm, STEPS), study.costs(arm, STEPS)
    own = [trial.steps for search in study.of(arm) for trial in search.trials if trial.number == search.chosen]
    return [
        Cell(arm.label),
        Cell("all"),
        Cell(f"each of {count(len(found), 'seed')} has its own"),
        _held(held),
        NOTHING if mean is None else Cell(rate(mean), value=mean),
        _optimism(mean, held),
        Cell(cost_text(STEPS, cost, costs), cost_interval(STEPS, cost, costs), cost),
        Cell(" / ".join(number(steps) for steps in own if steps is not None) or "–"),
    ]


def _worst_row(study: SearchStudy, search: Search, *, alone: bool) -> list[Cell]:
    found = harm(study, search.arm) if alone else None
    scores = [rerun.harmful for rerun in search.reruns if rerun.harmful is not None]
    mean = sum(scores) / len(scores) if scores else None
    held = _held(found) if alone else NOTHING if mean is None else Cell(rate(mean), value=mean)
    chosen = next((trial for trial in search.trials if trial.number == search.chosen), None)
    own = search.validation()
    steps = [rerun.costs["steps"] for rerun in search.reruns]
    told = ["diverged" if one is None else f"{'> ' if one.censored else ''}{amount(STEPS, one.value)}" for one in steps]
    seen = "–" if chosen is None or chosen.steps is None else _steps(chosen)
    return [
        Cell(search.arm.label),
        Cell("/".join(str(part) for part in dict.fromkeys(p for p in search.seed if p is not None)) or "–"),
        Cell(visible(setting_words(search.setting)), _chosen(search)),
        held,
        NOTHING if own is None else Cell(rate(own), value=own),
        NOTHING if own is None or mean is None else Cell(_signed(own - mean), value=own - mean),
        Cell(" / ".join(told)),
        Cell(seen),
    ]


def _chosen(search: Search) -> str:
    """Which trial it was, and how the finalists did when they were run once more."""
    if search.chosen is None:
        return ""
    told = [f"{final.number} in {_steps(final)}" for final in search.finals if final.steps is not None]
    return f"trial {search.chosen}" + (f"; finalists once more: trial {', '.join(told)} steps" if told else "")


def _steps(trial: Trial) -> str:
    return f"{'' if trial.broke else '> '}{amount(STEPS, trial.steps or 0)}"


def _held(found: Harm | None) -> Cell:
    if found is None:
        return NOTHING
    interval = f"95% CI {found.interval.low:.2f}–{found.interval.high:.2f}, " if found.interval else ""
    return Cell(rate(found.value), interval + found.over, found)


def _optimism(own: float | None, held: Harm | None) -> Cell:
    if own is None or held is None:
        return NOTHING
    return Cell(_signed(own - held.value), value=own - held.value)


def _signed(value: float) -> str:
    rounded = round(value, 2) + 0.0
    return f"{'+' if rounded > 0 else '−' if rounded < 0 else ''}{abs(rounded):.2f}"
