"""Worker processes: they end with their parent, and leave Ctrl-C to it.

On Linux without a GPU they are forked from a server that has imported what stages need: the first takes as long as the
imports, the others a tenth of a second. Elsewhere each is a new interpreter: after a fork CUDA cannot be used if an
import has looked for a device, and macOS's own libraries do not survive one.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, TypeVar

from inoculate.core.errors import InoculateError, StageError

T = TypeVar("T")
_DRIVERS = ("nvidiactl", "kfd", "dri", "dxg")
"""Of NVIDIA's, AMD's and other GPUs, and of any under WSL."""
DIED = "its process died (out of memory, or killed)"


def workers(count: int, threads: int, *, fresh: bool = False) -> ProcessPoolExecutor:
    """A pool of so many workers, each computing with so many threads, in this process's environment as it is now.

    Args:
        fresh: each is a new interpreter, whose memory is its own.
    """
    context = multiprocessing.get_context("spawn") if fresh else _context()
    given = (threads, dict(os.environ))
    return ProcessPoolExecutor(count, mp_context=context, initializer=start_worker, initargs=given)


def warm_up(count: int) -> None:
    """Begin with the imports of workers to come, if more than one will, while this process does its own."""
    if count > 1 and _forks():
        from multiprocessing import forkserver

        _context()
        with _out_of_reach():
            forkserver.ensure_running()


def _forks() -> bool:
    """Whether workers can be forked from a server. Looks for a GPU's driver: to ask torch would import it first."""
    return sys.platform == "linux" and not any(Path("/dev", name).exists() for name in _DRIVERS)


def _context() -> BaseContext:
    if not _forks():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["inoculate.experiments.preloaded"])
    return context


def submit(pool: ProcessPoolExecutor, function: Callable[..., T], *arguments: Any) -> Future[T]:
    """Hand work to a worker; what has broken the pool is the work's error."""
    try:
        with _out_of_reach():
            return pool.submit(function, *arguments)
    except BrokenProcessPool as error:
        broken: Future[T] = Future()
        broken.set_exception(error)
        return broken


@contextmanager
def _out_of_reach() -> Iterator[None]:
    """A process that starts inside never sees Ctrl-C, which is this one's to answer."""
    resource_tracker.ensure_running()  # its own start would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(threads: int, environment: Mapping[str, str]) -> None:
    """What a pool's worker does first."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    hush_bitsandbytes()
    import torch

    torch.set_num_threads(threads)


def hush_bitsandbytes() -> None:
    """It warns, whenever peft imports it, of kernels that would only make it faster."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def alone(function: Callable[..., T], *arguments: Any) -> T:
    """What a function of some module returns in a fresh process of one thread, which is gone when this returns.

    Raises:
        StageError: if the process died, or raised what is no error of ours.
    """
    pool = workers(1, threads=1, fresh=True)
    try:
        return submit(pool, as_ours, function, *arguments).result()
    except BrokenProcessPool:
        raise StageError(DIED) from None
    except BaseException:
        for process in (pool._processes or {}).values():
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def side_by_side(
    function: Callable[..., None], calls: Sequence[tuple[Any, ...]], tick: Callable[[], None] = lambda: None
) -> list[BaseException | None]:
    """Make every call in a process of its own, all at once; one that dies or fails leaves the others going.

    Args:
        tick: called about four times a second.

    Returns:
        For each call the error that ended it, as one of ours, or None.
    """
    crew = [workers(1, threads=max(1, (os.cpu_count() or 1) // len(calls))) for _ in calls]
    try:
        futures = [submit(pool, as_ours, function, *call) for pool, call in zip(crew, calls, strict=True)]
        while wait(futures, timeout=0.25).not_done:
            tick()
        errors = [future.exception() for future in futures]
        return [StageError(DIED) if isinstance(error, BrokenProcessPool) else error for error in errors]
    except BaseException:
        for process in (process for pool in crew for process in (pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        for pool in crew:
            pool.shutdown(wait=True, cancel_futures=True)


def as_ours(function: Callable[..., T], *arguments: Any) -> T:
    """What a function returns; in a worker, any error of it as one of ours.

    Raises:
        StageError: for what is no error of ours, as text: an exception that cannot be unpickled would not reach the
            parent, or would break the pool and take other stages with it.
    """
    try:
        return function(*arguments)
    except InoculateError:
        raise
    except Exception as error:
        raise StageError(f"{type(error).__name__}: {error}") from error


def _die_with_parent() -> None:
    """End this worker when its parent is gone, however it went: an orphan would hold locks and cores."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    connection.wait([parent.sentinel])
    os._exit(1)
