"""The runner: stages in the order of their dependencies, in this process or handed to a crew, with progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from inoculate.core import ranks
from inoculate.core.errors import InoculateError, InputError
from inoculate.experiments.crew import Crew, Outcome, Processes, progress_of
from inoculate.experiments.stage import Context, Stage
from inoculate.experiments.store import Store


@dataclass
class Ran:
    """What became of the stages of one run."""

    done: list[Stage] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Folder → why, for stages that failed."""
    refused: set[str] = field(default_factory=set)
    """The failed ones whose input was wrong: to run them again would not help."""
    skipped: list[Stage] = field(default_factory=list)
    """Stages that were not started because something upstream failed or diverged."""
    computed: int = 0
    """Stages that were not in the store before."""

    def add(self, stage: Stage, outcome: Outcome) -> None:
        """A stage that ended: whether it was computed now, or why it failed."""
        if not isinstance(outcome, BaseException):
            self.done.append(stage)
            self.computed += outcome
            return
        kind = "" if isinstance(outcome, InoculateError) else f"{type(outcome).__name__}: "
        self.failed[stage.folder] = f"{stage.label()}: {kind}{outcome}"
        if isinstance(outcome, InputError):
            self.refused.add(stage.folder)


Report = Callable[[Ran, Sequence[Stage], int], None]
"""Called with what is done, the running stages, and the number of all."""


def in_order(stages: Iterable[Stage]) -> list[Stage]:
    """The stages and everything upstream of them, each once, dependencies first."""
    ordered: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        for above in stage.upstream():
            visit(above)
        ordered.setdefault(stage.folder, stage)

    for stage in stages:
        visit(stage)
    return list(ordered.values())


def run_stages(
    stages: Iterable[Stage],
    store: Store,
    context: Context,
    workers: int = 1,
    report: Report | None = None,
    crew: Crew | None = None,
) -> Ran:
    """Run all stages; one that fails leaves the others going.

    Args:
        workers: processes. 1 runs in this process. Each gets its share of the cores; where fewer stages can run, those
            that can share out their own work get more than one.

    Raises:
        InputError: for a finished stage whose folder was damaged since; nothing is run.
    """
    ordered = in_order(stages)
    ran = Ran()
    waiting = []
    there = ranks.told([store.has(stage) for stage in ordered])
    for stage, done in zip(ordered, there, strict=True):
        if done:
            store.verify(stage)
            ran.done.append(stage)
        else:
            waiting.append(stage)
    tell = report or (lambda *_: None)
    tell(ran, (), len(ordered))
    if not waiting:
        return ran
    if crew is not None:
        return _hand_out(waiting, store, crew, ran, tell, len(ordered))
    if workers == 1:
        return _run_here(waiting, store, context, ran, tell, len(ordered))
    with Processes(store, context, workers) as hired:
        return _hand_out(waiting, store, hired, ran, tell, len(ordered))


def _run_here(waiting: list[Stage], store: Store, context: Context, ran: Ran, tell: Report, total: int) -> Ran:
    for stage in waiting:
        if _blocked(stage, ran, store):
            ran.skipped.append(stage)
            continue
        watch = replace(context, progress=progress_of(store, stage, lambda stage=stage: tell(ran, (stage,), total)))
        try:
            ran.add(stage, store.run(stage, watch))
        except Exception as error:  # noqa: BLE001  one stage's bug must not take the others' results with it
            ran.add(stage, error)
        tell(ran, (), total)
    return ran


def _hand_out(waiting: list[Stage], store: Store, crew: Crew, ran: Ran, tell: Report, total: int) -> Ran:
    running: dict[str, Stage] = {}
    while waiting or running:
        ready = sum(all(store.has(above) for above in stage.upstream()) for stage in waiting)
        share = max(1, crew.room() // max(1, ready))
        for stage in list(waiting):
            if crew.room() < 1:
                break
            if _blocked(stage, ran, store):
                ran.skipped.append(stage)
                waiting.remove(stage)
            elif all(store.has(above) for above in stage.upstream()):
                crew.start(stage, share)
                running[stage.folder] = stage
                waiting.remove(stage)
        for stage, outcome in crew.ended():
            del running[stage.folder]
            ran.add(stage, outcome)
        if crew.broken:
            ran.skipped += waiting
            waiting.clear()
        tell(ran, tuple(running.values()), total)
    return ran


def _blocked(stage: Stage, ran: Ran, store: Store) -> bool:
    lost = {skipped.folder for skipped in ran.skipped} | set(ran.failed)
    return any(above.folder in lost or store.status(above) == "diverged" for above in stage.upstream())
