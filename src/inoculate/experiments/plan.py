"""What a recipe would cost: memory, FLOPs, hours and money of each stage, before anyone pays for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from inoculate.core.hardware import Hardware, Launch
from inoculate.core.types import DATA, WEIGHTS, Value
from inoculate.defenses import RepNoise, Together
from inoculate.experiments.few_shot import FewShotAttack
from inoculate.experiments.plan_cost import ALONE, Cost, Division, Seen, cost_of, together
from inoculate.experiments.plan_task import Task, Work, work_of
from inoculate.experiments.recipe import Recipe
from inoculate.experiments.runner import in_order
from inoculate.experiments.stage import Stage
from inoculate.experiments.start import Body, Start

_SEARCHED = "runs stop early, and trials of one search are stacked: what is computed is not known before"
_CLASSIFIER = "a classifier's body is made from its world when the stage runs, in seconds to minutes on a processor"
_NOT_PLANNED: Mapping[type[Stage], str] = {
    FewShotAttack: _SEARCHED,
    Body: _CLASSIFIER,
    Start: _CLASSIFIER,
}
_SCALES = {"num_train_epochs"}
"""Numbers of a stage that are not whole and decide its length. Of the others only whether they are zero matters."""
_MATTERS_NOT = {"seed", "poison_ratio"}


@dataclass(frozen=True)
class Planned:
    """Stages of a recipe that cost the same. FLOPs, hours and money are of all of them together."""

    kind: str
    title: str
    stages: int
    cost: Cost | None
    """Of one stage; None if it is not planned, for this reason:"""
    reason: str = ""
    hours: float | None = None
    usd: float | None = None
    fits: str = ""
    bound: bool = False
    """Whether it may cost less."""

    @property
    def flops(self) -> float | None:
        """Of all stages together; None if the length of the work is not known."""
        return None if self.cost is None or self.cost.flops is None else self.cost.flops * self.stages


@dataclass(frozen=True)
class Plan:
    """A recipe's stages, and on what they would run."""

    recipe: str
    hardware: Hardware
    usd_per_hour: float
    """Of one device."""
    utilization: float
    rows: list[Planned] = field(default_factory=list)
    parallel: Launch | None = None
    """How devices train one model together; None where they have a stage each."""

    @property
    def complete(self) -> bool:
        """Whether every stage is in the totals."""
        return all(row.flops is not None for row in self.rows)

    @property
    def bound(self) -> bool:
        """Whether some stage may cost less than the totals have of it."""
        return any(row.bound for row in self.rows)

    def totals(self) -> dict[str, float]:
        """`stages`, and of those that are planned `flops`, `hours`, `usd` and the largest `peak_bytes`."""
        costs = [row.cost for row in self.rows if row.cost is not None]
        return {
            "stages": sum(row.stages for row in self.rows),
            "flops": sum(row.flops or 0 for row in self.rows),
            "hours": sum(row.hours or 0.0 for row in self.rows),
            "usd": sum(row.usd or 0.0 for row in self.rows),
            "peak_bytes": max((cost.peak_bytes for cost in costs), default=0),
        }

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs; sizes in bytes, `flops` of a `cost` of one stage, of a row of all of its stages."""
        rows = [{**asdict(row), "flops": row.flops} for row in self.rows]
        return {
            "recipe": self.recipe,
            "hardware": {**asdict(self.hardware.device), "count": self.hardware.count},
            "usd_per_device_hour": self.usd_per_hour,
            "utilization": self.utilization,
            "parallel": self.parallel,
            "stages": rows,
            "totals": self.totals(),
            "complete": self.complete,
        }


def plan(
    recipe: Recipe,
    hardware: Hardware,
    usd_per_hour: float | None,
    utilization: float,
    tell: Callable[[int, int], None] = lambda done, of: None,
    parallel: Launch | None = None,
) -> Plan:
    """Plan a recipe. Nothing is downloaded but, for a hub id without a `shape`, the model's configuration.

    Args:
        usd_per_hour: price of one device; None takes the table's, an assumption.
        utilization: share of the device's peak rate that is reached.
        tell: is called with the rows that are planned, and all rows: a second-order step takes minutes.
        parallel: several devices train one model together, as under `accelerate launch`, where the stage does that;
            the other stages are the first device's, and the rest wait. None has stages side by side.

    Raises:
        InputError: if a model's configuration cannot be read, or lacks a module that an adapter is for.
    """
    price = hardware.device.usd_per_hour if usd_per_hour is None else usd_per_hour
    groups: dict[str, Planned] = {}
    works: dict[str, tuple[Work, Division]] = {}
    for stage in in_order(recipe.stages()):
        why = _NOT_PLANNED.get(type(stage))
        work = None if why is not None else work_of(stage)
        over = Division(hardware.count, parallel == "fsdp") if parallel and stage.parallel else ALONE
        if work is not None and over.devices > 1 and (why := _undivided(work.tasks()[0], over)):
            work = None
        key = f"{stage.kind} {why}" if work is None else cost_key(work)
        if key in groups:
            groups[key] = replace(groups[key], stages=groups[key].stages + 1)
            continue
        groups[key] = Planned(stage.kind, "" if work is None else work.title, 1, None, why or "")
        if work is not None:
            works[key] = work, over
    seen: Seen = {}
    costed: list[Planned] = []
    for key, row in groups.items():
        tell(len(costed), len(groups))
        costed.append(_costed(row, *works[key], seen) if key in works else row)
    tell(len(costed), len(groups))
    side_by_side = 1 if parallel else hardware.count
    rows = [_priced(row, hardware, price, utilization, side_by_side) for row in costed]
    return Plan(recipe.name, hardware, price, utilization, rows, parallel)


def _undivided(task: Task, over: Division) -> str:
    """Why several devices cannot make the task's steps together, or what they need is not known; else nothing."""
    allowed = getattr(task.objective, "parallel", frozenset())
    if DATA not in allowed:
        return f"{task.objective.name} trains in one process"
    if over.weights and WEIGHTS not in allowed:
        return f"{task.objective.name} needs whole weights in each process: ddp"
    members = task.objective.of if isinstance(task.objective, Together) else (task.objective,)
    if any(isinstance(member, RepNoise) for member in members):
        return "RepNoise's distances are between all tokens of a batch, in each process: plan it on one device"
    return ""


def _costed(row: Planned, work: Work, over: Division, seen: Seen) -> Planned:
    try:
        cost = work_cost(work, over, seen)
    except RuntimeError as error:  # torch's word for what cannot be known without numbers, as a router's choices
        return replace(row, reason=f"the model cannot be run without numbers: {str(error).strip().splitlines()[0]}")
    return replace(row, cost=cost, reason=cost.unknown or work.bound, bound=bool(work.bound))


def work_cost(work: Work, over: Division, seen: Seen) -> Cost:
    """What a stage's work costs on so many devices.

    Args:
        seen: evaluations that were costed before; is looked into and added to.

    Raises:
        InputError, RuntimeError: as `plan_cost.cost_of`.
    """
    runs = [(times, [cost_of(task, seen, over) for task in tasks]) for times, tasks in work.runs]
    return together(runs, work.copies)


def _priced(row: Planned, hardware: Hardware, price: float, utilization: float, side_by_side: int) -> Planned:
    cost = row.cost
    if cost is None:
        return row
    row = replace(row, fits=hardware.fits(cost.peak_bytes))
    if cost.flops is None:
        return row
    seconds = hardware.seconds(cost.training_flops * cost.share, 0, utilization, cost.bf16)
    seconds += hardware.seconds(cost.flops - cost.training_flops, cost.bytes_read, utilization, cost.bf16_evaluation)
    hours = seconds * row.stages / side_by_side / 3600
    return replace(row, hours=hours, usd=hours * hardware.count * price)


def cost_key(work: Work) -> str:
    """Equal for work of equal cost: seeds and rates left out."""
    decides = [[_plain(part) for part in task.decides] for task in work.tasks()]
    return json.dumps([work.kind, work.title, decides], sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Value):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, dict):
        return {
            name: inner if name in _SCALES else _plain(inner)
            for name, inner in value.items()
            if name not in _MATTERS_NOT
        }
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value != 0 if isinstance(value, float) else value
