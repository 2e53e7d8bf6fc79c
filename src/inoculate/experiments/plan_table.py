"""A plan as a table to read, or as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Literal

from inoculate.core.hardware import TIGHT
from inoculate.experiments.plan import Plan, Planned

_COLUMNS = ("stage", "n", "parameters", "trained", "adapter", "weights", "grad+opt", "activ.", "defense", "peak")
_OUTCOME = ("fits", "steps", "tokens", "× SFT", "FLOPs", "hours", "USD")
_SIDE_BY_SIDE = (
    "Hours on several devices are for stages side by side, each on one; --parallel ddp or fsdp has them share."
)
_TOGETHER = (
    "Alignments and vectors are trained by all devices together, memory is each one's and the time of sending is left "
    "out; other stages are one device's while the rest wait."
)
_LIMIT = {(True, False): "", (True, True): "at most ", (False, False): "at least ", (False, True): "about "}
"""What is said of the totals of a plan that is complete or not, and has upper bounds in it or not."""
_WIDTH = 400
"""Wider than any row: a terminal may wrap lines, a file must not."""


def plans_text(plans: Sequence[Plan], format: Literal["table", "json"] = "table") -> str:
    """One plan, or those of a collection, each under its recipe's name; as JSON an object, or a list of them.

    A plan is one row per kind of stage, the totals, and what the numbers assume. The text ends with a line break.
    """
    if format == "json":
        all_of_them = [plan.as_json() for plan in plans]
        return json.dumps(all_of_them[0] if len(plans) == 1 else all_of_them, indent=1, ensure_ascii=False) + "\n"
    if len(plans) == 1:
        return _plan_text(plans[0])
    return "\n".join(f"{plan.recipe}\n\n{_plan_text(plan)}" for plan in plans)


def _plan_text(plan: Plan) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="")
    for name in (*_COLUMNS, *_OUTCOME):
        table.add_column(name, justify="left" if name in ("stage", "fits") else "right", no_wrap=True)
    for row in plan.rows:
        table.add_row(*_cells(row))
    out = io.StringIO()
    Console(file=out, width=_WIDTH, color_system=None, markup=False, highlight=False).print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([*lines, "", _totals(plan), *_reasons(plan), *_assumed(plan)]) + "\n"


def _cells(row: Planned) -> list[str]:
    name = " ".join(filter(None, (row.kind, row.title)))
    cost = row.cost
    if cost is None:
        return [name, str(row.stages), "not planned"]
    sizes = (cost.adapter_bytes, cost.weights_bytes, cost.gradient_bytes + cost.optimizer_bytes, cost.activation_bytes)
    bound = "" if cost.known else "≤ "
    most = "≤ " if row.bound else ""
    return [
        name,
        str(row.stages),
        f"{cost.parameters:,}",
        f"{cost.trainable:,}",
        *(_size(size) for size in (*sizes, cost.defense_bytes, cost.peak_bytes)),
        row.fits,
        "" if not cost.steps else f"{cost.steps:,}",
        bound + str(max(cost.tokens.values(), default="")),
        f"{cost.over_sft:.2f}" if cost.over_sft else "",
        "?" if row.flops is None else f"{most}{row.flops:.2e}",
        "?" if row.hours is None else most + _hours(row.hours),
        "?" if row.usd is None else f"{most}{row.usd:,.2f}",
    ]


def _totals(plan: Plan) -> str:
    sums = plan.totals()
    least = _LIMIT[plan.complete, plan.bound]
    if not plan.complete and not sums["flops"]:
        peak = _size(int(sums["peak_bytes"]))
        return f"In all {sums['stages']:,} stages: what they compute is not known; peak {peak} on each device"
    return (
        f"In all {sums['stages']:,} stages: {least}{sums['flops']:.2e} FLOPs, {least}{_hours(sums['hours'])} h and "
        f"{sums['usd']:,.2f} USD on {plan.hardware.name}; peak {_size(int(sums['peak_bytes']))} on each device"
    )


def _reasons(plan: Plan) -> list[str]:
    named: dict[str, list[Planned]] = {}
    for row in plan.rows:
        if row.reason:
            named.setdefault(row.reason, []).append(row)
    return [f"{_names(rows)}: {reason}" for reason, rows in named.items()]


def _names(rows: Sequence[Planned]) -> str:
    """One row by its kind and title, several by their kinds."""
    return (
        ", ".join(dict.fromkeys(row.kind for row in rows))
        if len(rows) > 1
        else f"{rows[0].kind} {rows[0].title}".strip()
    )


def _assumed(plan: Plan) -> list[str]:
    device = plan.hardware.device
    shared = ""
    if plan.hardware.count > 1:
        shared = f"{_TOGETHER if plan.parallel else _SIDE_BY_SIDE} "
    return [
        f"n: stages of equal cost, FLOPs, hours and USD of all of them. Assumed: {plan.utilization:.0%} of "
        f"{device.name}'s peak ({device.bf16 / 1e12:g} TFLOP/s in bf16, {device.fp32 / 1e12:g} in fp32), "
        f"{plan.usd_per_hour:g} USD per device and hour; tokens marked ≤ are the limit, the rest means of the data. "
        f"Fits: at most {TIGHT:.0%} of {device.memory_gb} GB, tight: more.",
        "Hours are arithmetic and, in generation, reads of the weights: a small model takes longer than that. "
        f"{shared}Not counted: loading, judges that are models, diagnostics (track_harm).",
    ]


def _size(size: int) -> str:
    if not size:
        return "–"
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _hours(hours: float) -> str:
    return f"{hours:.2f}" if hours >= 0.01 or not hours else f"{hours:.1e}"
