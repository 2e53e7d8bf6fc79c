"""Why a security vector works: loss and gradient of harmful data with the vector mounted and without."""

from __future__ import annotations

from collections.abc import Sequence

from inoculate.evals.statistics import mean_interval
from inoculate.reports.runs import Grid, Run
from inoculate.reports.tables import Cell, Column, Table
from inoculate.reports.wording import key_name, number, value_text

_MEASURES = (
    ("harmful_loss_train", "Harmful loss"),
    ("harmful_grad_norm", "Harmful gradient, L2"),
    ("user_grad_norm", "User's gradient, L2"),
    ("gradient_cosine", "Cosine of the two"),
)


def mechanism(grid: Grid) -> Table | None:
    """Mounted / unmounted at the first and the last step, means over seeds; None where nothing was diagnosed."""
    probed = [run for run in grid.attacks if "mounted_harmful_grad_norm" in run.curves]
    if not probed:
        return None
    varying = grid.varying([run.setting for run in probed])
    keys = [key for key in grid.keys if key in grid.keys[:2] or key in varying]
    heads = [Column("Defense", numeric=False), *(Column(key_name(key)) for key in keys), Column("Step")]
    heads += [Column(title) for _, title in _MEASURES] + [Column("Seeds")]
    rows = []
    for arm in grid.arms:
        for setting in grid.settings():
            runs = [run for run in grid.cell(arm, setting) if run in probed]
            for step in sorted({step for run in runs for step in run.curve("harmful_grad_norm", "")}):
                cells = [_pair(runs, metric, step) for metric, _ in _MEASURES]
                head = [Cell(value_text(key, setting.get(key)), value=setting.get(key)) for key in keys]
                rows.append([Cell(arm.label), *head, Cell(number(step)), *cells, Cell(str(len(runs)))])
    note = (
        "First number: with the vector mounted, as during training. Second line: without it, as served. Of up to 32 "
        "harmful rows and 32 of the user's task, over all trainable weights; layer by layer in the records. Means over "
        "seeds."
    )
    return Table("What harmful data can still teach while the vector is mounted", heads, rows, note)


def _pair(runs: Sequence[Run], metric: str, step: int) -> Cell:
    mounted, plain = (_mean(runs, prefix + metric, step) for prefix in ("mounted_", ""))
    return Cell(_text(mounted), f"unmounted {_text(plain)}", (mounted, plain))


def _mean(runs: Sequence[Run], metric: str, step: int) -> float | None:
    found = [point.value for run in runs if (point := run.curve(metric, "").get(step))]
    return mean_interval(found).value if found else None


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"
