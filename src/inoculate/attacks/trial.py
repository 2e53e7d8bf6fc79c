"""One trial: a model is attacked with one setting and measured along the way."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

from inoculate.attacks.finetune import Finetune
from inoculate.attacks.meter import Meter
from inoculate.attacks.search import Outcome, Point, UtilityMetric, utility_row
from inoculate.core.errors import InputError
from inoculate.data.mix import Encodings


class Seen(Protocol):
    """What was measured on a model: rows of metrics, and what it said."""

    @property
    def rows(self) -> list[dict[str, Any]]: ...
    @property
    def responses(self) -> list[dict[str, Any]]: ...


class Observer(Protocol):
    """Whatever measures a model; an `inoculate.evals.evaluate.Evaluator` does."""

    def measure(self, model: Any) -> Seen: ...


@dataclass
class Tried:
    """How a trial went."""

    outcome: Outcome
    points: list[Point]
    rows: list[dict[str, Any]]
    """Everything that was measured, with its `step`."""
    wall_s: float
    inside_s: float
    """Of that, training and measuring."""
    responses: list[dict[str, Any]] = field(default_factory=list)


class Pruned(Exception):
    """Raised by a trial's watcher: this one leads nowhere."""


def carry_out(
    attack: Finetune,
    model: Any,
    tokenizer: Any,
    evaluator: Observer,
    *,
    measured_at: Collection[int],
    judge: str,
    utility: UtilityMetric,
    watch: Callable[[list[Point]], bool] = lambda points: False,
    keep_responses: bool = False,
    start: Seen | None = None,
    known: Encodings | None = None,
) -> Tried:
    """Attack a copy of the model.

    Args:
        model: pristine, on its device; a copy is attacked.
        judge: whose verdicts are the harmful score.
        watch: called at every measured step with the points so far; true ends the run, `Pruned` gives it up.
        keep_responses: of every measured step.
        start: what the evaluator says of the model before the first step, if that is known.
        known: rows that earlier trials encoded, to look into and to add to.

    Raises:
        InputError: if the evaluation does not measure the utility that is asked for.
    """
    from inoculate.training.fit import StopRun

    began, meter = time.monotonic(), Meter(attack.harmful_samples)
    tried = Tried("complete", [], [], 0.0, 0.0)

    def observe(attacked: Any, step: int) -> list[dict[str, Any]]:
        with meter.looking():
            measured = start if start is not None and step == 0 else evaluator.measure(attacked)
            useful = utility_row(measured.rows, utility)
            if useful is None:
                raise InputError("nothing that is measured tells it", field="search.utility", found=utility)
            harmful = next(row["value"] for row in measured.rows if _is_score(row, judge))
            tried.points.append(Point(meter.spent(attacked, step), harmful, useful["value"]))
            tried.rows += [{"step": step, **row} for row in (*measured.rows, useful)]
            if keep_responses:
                tried.responses += [{"step": step, **row} for row in measured.responses]
            try:
                enough = watch(tried.points)
            except Pruned:
                tried.outcome, enough = "pruned", True
        if enough:
            raise StopRun
        return []

    attacked = copy.deepcopy(model)
    _, fitted = attack.run(attacked, tokenizer, observe=observe, observe_at=measured_at, fed=meter.fed, known=known)
    if fitted.status == "diverged":
        tried.outcome = "diverged"
    tried.wall_s = time.monotonic() - began
    tried.inside_s = meter.inside_s
    return tried


def _is_score(row: dict[str, Any], judge: str) -> bool:
    return row["metric"] == "harmful_score" and row["judge"] == judge
