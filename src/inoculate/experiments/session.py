"""One run of a recipe at a terminal: progress, the manifest that reports read, and the exit code."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from inoculate.core import ranks
from inoculate.core.errors import InputError
from inoculate.experiments.recipe import Recipe
from inoculate.experiments.runner import Ran, in_order, run_stages
from inoculate.experiments.stage import Context, Stage, check_device
from inoculate.experiments.store import Store, environment, write_json


def run_recipe(
    recipe: Recipe,
    stages: Sequence[Stage],
    path: Path,
    workers: int | None,
    device: str,
    complain: Callable[[str, int], int],
    storage: str | None = None,
    on: str | None = None,
) -> int:
    """Run a recipe's stages; 0 if all are done, 1 if one failed (the others are kept, and the failed ones named).

    2 if all that failed did so because the input was wrong. A diverged stage is done, and said on stderr.

    Args:
        workers: stages at once; None is one in this process, and on a cluster as many as it has room for.
        on: the cluster that runs the stages, as `cluster.check_on` allows it; None is this machine.
    """
    if ranks.launched() and (on is not None or (workers or 1) > 1):
        field = "--workers" if on is None else "--on"
        raise InputError("the processes of a launch work on one stage together", field=field, expected="one worker")
    ranks.join()
    if on is None:
        check_device(device)
    else:
        from inoculate.experiments.cluster import Cluster, check_on

        check_on(on, device)
    store, began = Store(path), time.monotonic()
    context = Context(recipe=recipe.name, device=device, storage=storage)
    with ExitStack() as leaving:
        crew = None
        if on is not None and not all(store.has(stage) for stage in in_order(stages)):
            crew = leaving.enter_context(Cluster(on, store, context, workers))
        bars = leaving.enter_context(_bars())
        ran = run_stages(stages, store, context, workers or 1, _Display(bars, store, recipe.name).show, crew)
    for why in ran.failed.values():
        complain(why, 1)
    for stage in ran.done:
        if store.status(stage) == "diverged":
            complain(f"{stage.label()}: diverged", 0)
    if ran.skipped:
        complain(f"skipped, since what they build on failed or diverged: {_named(ran.skipped)}", 0)
    try:
        if ranks.rank() == 0:
            _write_manifest(recipe, stages, ran, store, time.monotonic() - began)
    except OSError as error:
        code = complain(f"the recipe's manifest could not be written: {error.strerror} ({store.path})", 1)
        if not ran.failed:
            return code
    if ran.failed:
        wrong = set(ran.failed) == ran.refused
        advice = "the input is wrong" if wrong else "run again to retry them"
        return complain(f"{len(ran.failed)} of {len(in_order(stages))} stages failed; {advice}", 2 if wrong else 1)
    seconds = time.monotonic() - began
    summary = f"{len(ran.done)} stages done, {ran.computed} of them computed now, in {seconds:.1f} s; store: {path}"
    return complain(summary, 0)


def _named(stages: Sequence[Stage], most: int = 5) -> str:
    more = f" and {len(stages) - most} more" if len(stages) > most else ""
    return ", ".join(stage.label() for stage in stages[:most]) + more


class Show:
    """A bar for one stage; a transient one is for terminals alone, and leaves nothing behind."""

    def __init__(self, name: str, *, transient: bool = False) -> None:
        self._bars = _bars(transient)
        self._task = self._bars.add_task(name, total=None)

    def __enter__(self) -> Show:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def steps(self, step: int, steps: int) -> None:
        """Show that `step` of `steps` are made."""
        self._bars.update(self._task, completed=step, total=steps)


def _bars(transient: bool = False) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True, quiet=not ranks.first())
    return Progress(*columns, console=console, transient=transient, disable=transient and not console.is_terminal)


class _Display:
    """One bar for all stages, one for each running stage."""

    def __init__(self, bars: Progress, store: Store, name: str) -> None:
        self.bars, self.store = bars, store
        self.whole = bars.add_task(name, total=None)
        self.running: dict[str, TaskID] = {}

    def show(self, ran: Ran, running: Sequence[Stage], total: int) -> None:
        self.bars.update(self.whole, completed=len(ran.done), total=total)
        for folder in set(self.running) - {stage.folder for stage in running}:
            self.bars.remove_task(self.running.pop(folder))
        for stage in running:
            task = self.running.setdefault(stage.folder, TaskID(-1))
            if task == -1:
                task = self.running[stage.folder] = self.bars.add_task(f"  {stage.label()}", total=None)
            try:
                step, steps = map(int, self.store.progress_file(stage).read_text().split())
            except (OSError, ValueError):
                continue
            self.bars.update(task, completed=step, total=steps)


def _write_manifest(recipe: Recipe, stages: Sequence[Stage], ran: Ran, store: Store, wall_s: float) -> None:
    """`recipes/<name>.json`: what was asked, and which folders hold the answer."""
    folder = store.path / "recipes"
    folder.mkdir(exist_ok=True)
    file = folder / f"{recipe.name.replace('/', '--')}.json"
    if not (ran.computed or ran.failed or _hash_in(file) != recipe.hash):
        return
    entries: list[dict[str, Any]] = []
    for stage in in_order(stages):
        status = "failed" if stage.folder in ran.failed else store.status(stage) or "skipped"
        entry = {"folder": stage.folder, "kind": stage.kind, "status": status, "label": stage.label()}
        if stage.folder in ran.failed:
            entry["error"] = ran.failed[stage.folder]
        entries.append({**entry, "status": "done"} if status == "ok" else entry)
    about = {
        "name": recipe.name,
        "title": recipe.title,
        "description": recipe.description,
        "question": recipe.question,
        "hash": recipe.hash,
        "recipe": recipe.raw,
        "stages": entries,
        "environment": environment(),
        "wall_s": round(wall_s, 3),
    }
    write_json(file, about)


def _hash_in(manifest: Path) -> str | None:
    try:
        return json.loads(manifest.read_text(encoding="utf-8"))["hash"]
    except (OSError, ValueError, KeyError):
        return None
