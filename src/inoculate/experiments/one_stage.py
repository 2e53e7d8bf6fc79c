"""One stage on the user's own model and files: align, finetune, evaluate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inoculate.core import ranks
from inoculate.core.errors import InoculateError, InputError, StageError
from inoculate.core.records import read_records
from inoculate.data.mix import Part
from inoculate.evals.evaluate import Evaluation
from inoculate.experiments.apart import Apart
from inoculate.experiments.blame import input_error
from inoculate.experiments.recipe import parse_override, set_field
from inoculate.experiments.session import Show
from inoculate.experiments.stage import Context, Stage, check_device, check_inputs
from inoculate.experiments.store import Store


def run_one(
    out: Path,
    kind: type[Stage],
    value: dict[str, Any],
    overrides: Sequence[str],
    device: str,
    say: Callable[[str], None],
    complete: Callable[[dict[str, Any]], None] | None = None,
) -> int:
    """Validate, run in a store beside `out`, and move the finished folder to `out`. A cut-off run resumes.

    Args:
        complete: fills in what hangs on the data; called when all that takes no time has been checked.

    Raises:
        InputError: if a field is wrong or `out` exists.
    """
    ranks.join()
    for override in overrides:
        set_field(value, *parse_override(override), file="--set")
    stage = _validated(kind, value)
    work = out.parent / f".{out.name}.work"
    resumed = work.exists()
    if complete is not None and (resumed or not out.exists()):
        check_device(device)
        check_inputs([stage], but=(Part, Evaluation, Apart))
        complete(value)
        stage = _validated(kind, value)

    def is_done() -> bool:
        if resumed and _is_done(out, stage):  # killed after the rename: what is left is to tidy up
            shutil.rmtree(work)
            return True
        if out.exists():
            raise InputError("exists already", file=out, field="--out", expected="a new folder")
        check_device(device)
        check_inputs([stage])
        return False

    if ranks.by_the_first(is_done):
        say(f"{out}: {stage.label()}")
        return 0
    store = Store(work, option="--out")
    try:
        with Show(kind.kind) as show:
            store.run(stage, Context(device=device, progress=show.steps))
    except InoculateError as error:
        if isinstance(error, InputError) and not resumed and ranks.rank() == 0:
            shutil.rmtree(work, ignore_errors=True)  # to run again would not help: there is nothing to keep
        raise
    except Exception as error:
        raise StageError(f"{stage.label()}: {type(error).__name__}: {error}") from error
    if ranks.rank() == 0:
        store.folder(stage).rename(out)
        shutil.rmtree(store.path)
    say(f"{out}: {stage.label()}")
    if ranks.rank() == 0 and (told := _told(out / "records.jsonl")):
        say(told)
    if left := stage.unmeasured():
        say(f"not measured, for want of weights: {', '.join(left)}")
    return 0


_TOLD = ("harmful_score", "over_refusal_rate", "ordinary_accuracy", "finetune_accuracy")


def _told(file: Path) -> str:
    """The rates that a reader looks for first, after the last step."""
    rows = [row for row in read_records(file) if row.metric in _TOLD and row.layer == ""] if file.exists() else []
    last = max((row.step or 0 for row in rows), default=0)
    shown = sorted((row for row in rows if (row.step or 0) == last), key=lambda row: _TOLD.index(row.metric))
    rates = [
        f"{row.metric} {row.status if row.value is None else f'{row.value:.2f}'} "
        f"({f'{row.judge}, ' if row.judge else ''}n {row.n or 0})"
        for row in shown
    ]
    return f"{'after step ' + str(last) + ': ' if last else ''}{', '.join(rates)}" if rates else ""


def _validated(kind: type[Stage], value: dict[str, Any]) -> Stage:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise input_error(error, kind, value, None) from None


def _is_done(out: Path, stage: Stage) -> bool:
    """Whether this very stage has its folder already."""
    try:
        return json.loads((out / "stage.json").read_text(encoding="utf-8"))["hash"] == stage.hash
    except (OSError, ValueError, KeyError, TypeError):
        return False
