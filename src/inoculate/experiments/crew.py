"""Crews: what stages are handed to. Here, processes of this machine; the nodes of a cluster are in cluster.py."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

from inoculate.core import ranks
from inoculate.core.errors import StageError
from inoculate.experiments.processes import DIED, as_ours, start_worker, submit
from inoculate.experiments.stage import Context, Stage
from inoculate.experiments.store import Store

Outcome = bool | BaseException
"""Whether a stage was computed now, or why it failed."""
POLL_S = 0.25


class Crew(Protocol):
    """Takes stages one by one. Those here are contexts: on leaving by an error, what still runs is ended."""

    broken: bool
    """Whether it can take no more."""

    def room(self) -> int:
        """How many more stages can be started now."""
        ...

    def start(self, stage: Stage, share: int) -> None:
        """Start a stage whose upstream is done.

        Args:
            share: of the room, what this stage may use if its work can be shared out.
        """
        ...

    def ended(self) -> Iterable[tuple[Stage, Outcome]]:
        """Stages that ended since the last call; waits `POLL_S` at most."""
        ...


class Processes:
    """Worker processes of this machine, each with its share of the cores. One that dies breaks the crew."""

    def __init__(self, store: Store, context: Context, workers: int) -> None:
        self.broken = False
        self._store, self._context, self._workers = store, context, workers
        self._running: dict[Future[bool], Stage] = {}

    def __enter__(self) -> Processes:
        threads, spawn = max(1, (os.cpu_count() or 1) // self._workers), multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(
            self._workers, mp_context=spawn, initializer=start_worker, initargs=(threads, os.getpid())
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for process in (self._pool._processes or {}).values():
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def room(self) -> int:
        return self._workers - len(self._running)

    def start(self, stage: Stage, share: int) -> None:
        context = replace(self._context, workers=share)
        self._running[submit(self._pool, work, stage, self._store.path, context)] = stage

    def ended(self) -> Iterable[tuple[Stage, Outcome]]:
        finished, _ = wait(self._running, timeout=POLL_S, return_when=FIRST_COMPLETED)
        for future in finished:
            stage, error = self._running.pop(future), future.exception()
            if isinstance(error, BrokenProcessPool):
                self.broken, error = True, StageError(DIED)
                self._store.note_failure(stage, self._context, str(error))
            yield stage, error or future.result()


def work(stage: Stage, path: Path, context: Context) -> bool:
    """Run a stage in a worker; whether it was computed now.

    Raises:
        InoculateError: as `Store.run`, and for any other error.
    """
    store = Store(path)
    return as_ours(store.run, stage, replace(context, progress=progress_of(store, stage)))


def progress_of(store: Store, stage: Stage, tell: Callable[[], None] | None = None) -> Callable[[int, int], None]:
    """Writes how far the stage is, at most four times a second."""
    file, last = store.progress_file(stage), 0.0

    def progress(step: int, steps: int) -> None:
        nonlocal last
        if ranks.rank() == 0 and time.monotonic() - last >= POLL_S:
            last = time.monotonic()
            file.write_text(f"{step} {steps}")
            if tell is not None:
                tell()

    return progress
