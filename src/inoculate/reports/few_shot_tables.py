"""Tables of a few-shot study: accuracy by n, and what the restricted task costs."""

from __future__ import annotations

from inoculate.evals.statistics import Estimate
from inoculate.reports.few_shot import RANDOM, Study
from inoculate.reports.runs import Arm
from inoculate.reports.tables import Cell, Column, Table
from inoculate.reports.wording import count, listed, rate

LEVELS = (0.6, 0.7, 0.8, 0.9)
NOTHING = Cell("–")
_START = Column("Starting point", numeric=False)
_INTERVALS = "Second lines are 95% intervals, Student's t over seeds, each for itself: not corrected for their number."


def tables(study: Study) -> tuple[Table, ...]:
    """Accuracies of each task, then costs."""
    found = [accuracy_table(study, task) for task in study.tasks()]
    costs = cost_table(study)
    return (*found, costs) if costs.rows else tuple(found)


def accuracy_table(study: Study, task: str) -> Table:
    """Starting points × n, for one task."""
    sizes = study.sizes(task)
    rows = [
        [Cell(arm.label), *(_accuracy(study, arm, task, n) for n in sizes), _seeds(study, arm, task)]
        for arm in study.arms
        if any((arm, task, n) in study.lost or study.mean(arm, task, n) for n in sizes)
    ]
    chance = f" (chance {rate(1 / classes)})" if (classes := study.classes.get(task)) else ""
    caption = f"{task.capitalize()} task: accuracy after learning from n samples{chance}"
    note = _how_measured(study) if task == study.tasks()[0] else "Lines as in the first table."
    return Table(caption, [_START, *(Column(f"n = {n}") for n in sizes), Column("Seeds")], rows, note)


def cost_table(study: Study) -> Table:
    """Advantage over random initialization, samples needed, and what each start is and cost itself."""
    task, sizes = "restricted", study.sizes("restricted")
    random = next(iter(study.of(RANDOM)), None)
    advantage = sizes if random is not None else []
    columns = [_START, *(Column(f"E at n = {n}") for n in advantage)]
    columns += [Column(f"n to {level:g}") for level in LEVELS if sizes]
    columns += [Column("Own desired accuracy"), Column("Training (s)")]
    rows = []
    for arm in study.arms:
        cells = [Cell("reference") if arm == random else _advantage(study, arm, random, n) for n in advantage]
        cells += [_needed(study, arm, task, level) for level in LEVELS if sizes]
        cells += [_own(study, arm, "desired_accuracy"), _own(study, arm, "train_wall_s")]
        if any(cell != NOTHING for cell in cells):
            rows.append([Cell(arm.label), *cells])
    own = "Own desired accuracy: held-out rows, by the head that the start was trained with."
    if not sizes:
        return Table("The starting points", columns, rows, f"{own} {_INTERVALS}")
    note = (
        "E is the advantage over random initialization: held-out accuracy minus that of the random start with the same "
        "seed; 0 or below at every n is what a self-destructing model is to reach. The paper's E is a difference in "
        "loss, not in accuracy. "
        if advantage
        else ""
    )
    note += (
        "n to an accuracy: the first n tried whose mean reaches it; “≤” at the smallest n, “>” where none "
        f"did. {own} {_INTERVALS}"
    )
    return Table("What the restricted task costs", columns, rows, note)


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign: +0.03, −0.10, 0.00."""
    rounded = round(value, digits) + 0.0
    return f"{'+' if rounded > 0 else '−' if rounded < 0 else ''}{abs(rounded):.{digits}f}"


def interval_of(difference: Estimate, digits: int = 2) -> str:
    """`−0.01 to +0.05`, or why there is none."""
    if difference.interval is None:
        return "one seed"
    return f"{signed(difference.interval.low, digits)} to {signed(difference.interval.high, digits)}"


def _accuracy(study: Study, arm: Arm, task: str, n: int) -> Cell:
    heldout, validation = study.mean(arm, task, n), study.mean(arm, task, n, "validation")
    if heldout is None and validation is None:
        return NOTHING
    details = [_bounds(heldout)] if heldout and heldout.interval else []
    details += [f"val. {rate(validation.value)}"] if validation else []
    return Cell(rate(heldout.value) if heldout else "–", " · ".join(details), (heldout, validation))


def _bounds(found: Estimate) -> str:
    assert found.interval is not None
    return f"{max(0.0, found.interval.low):.2f}–{min(1.0, found.interval.high):.2f}"


def _seeds(study: Study, arm: Arm, task: str) -> Cell:
    found = [len(study.seeds(arm, task, n)) for n in study.sizes(task)]
    lost = [study.lost.get((arm, task, n), (0, 0)) for n in study.sizes(task)]
    reruns, searches = (sum(counts) for counts in zip(*lost, strict=True))
    gone = [count(reruns, "re-run")] if reruns else []
    gone += [f"{searches} search{'es' if searches > 1 else ''}"] if searches else []
    text = "–".join(str(n) for n in dict.fromkeys((min(found), max(found))))
    return Cell(text, f"{listed(gone)} diverged" if gone else "", max(found))


def _advantage(study: Study, arm: Arm, random: Arm | None, n: int) -> Cell:
    found = study.difference(arm, random, "restricted", n) if random is not None else None
    if found is None:
        both = random is not None and study.mean(arm, "restricted", n) and study.mean(random, "restricted", n)
        return Cell("–", "no seed in common") if both else NOTHING
    return Cell(signed(found.value), interval_of(found).replace("+", ""), found)


def _needed(study: Study, arm: Arm, task: str, level: float) -> Cell:
    found = study.needed(arm, task, level)
    if found is None:
        return NOTHING
    n, censored = found
    sign = "> " if censored else "≤ " if n == study.sizes(task)[0] else ""
    return Cell(f"{sign}{n}", value=found)


def _own(study: Study, arm: Arm, metric: str) -> Cell:
    found = study.start(arm, metric)
    if found is None:
        return NOTHING
    if metric == "train_wall_s":
        return Cell(f"{found.value:.3g}" if found.value < 100 else f"{found.value:.0f}", value=found)
    return Cell(rate(found.value), _bounds(found) if found.interval else "", found)


def _how_measured(study: Study) -> str:
    rows = {split: listed([str(n) for n in study.rows[split]]) for split in study.rows}
    again = f" over {listed([str(n) for n in study.reruns])} re-runs" if study.reruns else ""
    text = (
        f"First line: accuracy on {rows['heldout'] or 'no'} held-out rows, the mean over seeds of each seed's "
        f"mean{again} of the best setting found. Second line: its 95% interval, Student's t over seeds"
    )
    if rows["validation"]:
        text += (
            f"; then (val.) the published number, the best accuracy seen along each run on the {rows['validation']} "
            "validation rows that also chose the setting, which flatters the attacker"
        )
    return text + "."
