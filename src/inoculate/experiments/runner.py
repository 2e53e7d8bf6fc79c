"""The runner: stages in the order of their dependencies, in this process or in several, with progress."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path

from inoculate.core.errors import InoculateError, InputError, StageError
from inoculate.experiments.processes import DIED, as_ours, start_worker, submit
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

    def add(self, stage: Stage, outcome: bool | BaseException) -> None:
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
    stages: Iterable[Stage], store: Store, context: Context, workers: int = 1, report: Report | None = None
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
    for stage in ordered:
        if store.has(stage):
            store.verify(stage)
            ran.done.append(stage)
        else:
            waiting.append(stage)
    tell = report or (lambda *_: None)
    tell(ran, (), len(ordered))
    if not waiting:
        return ran
    if workers == 1:
        return _run_here(waiting, store, context, ran, tell, len(ordered))
    return _run_pool(waiting, store, context, ran, tell, len(ordered), workers)


def _run_here(waiting: list[Stage], store: Store, context: Context, ran: Ran, tell: Report, total: int) -> Ran:
    for stage in waiting:
        if _blocked(stage, ran, store):
            ran.skipped.append(stage)
            continue
        watch = replace(context, progress=_progress(store, stage, lambda stage=stage: tell(ran, (stage,), total)))
        try:
            ran.add(stage, store.run(stage, watch))
        except Exception as error:  # noqa: BLE001  one stage's bug must not take the others' results with it
            ran.add(stage, error)
        tell(ran, (), total)
    return ran


def _run_pool(
    waiting: list[Stage], store: Store, context: Context, ran: Ran, tell: Report, total: int, workers: int
) -> Ran:
    threads = max(1, (os.cpu_count() or 1) // workers)
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=start_worker, initargs=(threads, os.getpid()))
    running: dict[Future[bool], Stage] = {}
    try:
        while waiting or running:
            ready = sum(all(store.has(above) for above in stage.upstream()) for stage in waiting)
            share = max(1, (workers - len(running)) // max(1, ready))
            for stage in list(waiting):
                if len(running) == workers:
                    break
                if _blocked(stage, ran, store):
                    ran.skipped.append(stage)
                    waiting.remove(stage)
                elif all(store.has(above) for above in stage.upstream()):
                    running[submit(pool, _work, stage, store.path, replace(context, workers=share))] = stage
                    waiting.remove(stage)
            finished, _ = wait(running, timeout=0.25, return_when=FIRST_COMPLETED)
            for future in finished:
                stage = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    error = StageError(DIED)
                    store.note_failure(stage, context, str(error))
                    ran.skipped += waiting
                    waiting.clear()
                ran.add(stage, error or future.result())
            tell(ran, tuple(running.values()), total)
    except BaseException:
        for process in (pool._processes or {}).values():
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return ran


def _blocked(stage: Stage, ran: Ran, store: Store) -> bool:
    lost = {skipped.folder for skipped in ran.skipped} | set(ran.failed)
    return any(above.folder in lost or store.status(above) == "diverged" for above in stage.upstream())


def _work(stage: Stage, path: Path, context: Context) -> bool:
    store = Store(path)
    return as_ours(store.run, stage, replace(context, progress=_progress(store, stage)))


def _progress(store: Store, stage: Stage, tell: Callable[[], None] | None = None) -> Callable[[int, int], None]:
    """Writes how far the stage is, at most four times a second."""
    file, last = store.progress_file(stage), 0.0

    def progress(step: int, steps: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 0.25:
            last = time.monotonic()
            file.write_text(f"{step} {steps}")
            if tell is not None:
                tell()

    return progress
