"""Worker processes: they end with their parent, and leave Ctrl-C to it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from inoculate.core.errors import InoculateError, StageError

T = TypeVar("T")
DIED = "its process died (out of memory, or killed)"


def submit(pool: ProcessPoolExecutor, function: Callable[..., T], *arguments: Any) -> Future[T]:
    """Hand work to a worker; one that starts for it never sees Ctrl-C, which is the parent's to answer."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(function, *arguments)
    except BrokenProcessPool as error:
        broken: Future[T] = Future()
        broken.set_exception(error)
        return broken
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(threads: int, parent: int) -> None:
    """What a pool's worker does first."""
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
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
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=start_worker, initargs=(1, os.getpid()))
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
    spawn, threads = multiprocessing.get_context("spawn"), max(1, (os.cpu_count() or 1) // len(calls))
    crew = [
        ProcessPoolExecutor(1, mp_context=spawn, initializer=start_worker, initargs=(threads, os.getpid()))
        for _ in calls
    ]
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


def _die_with(parent: int) -> None:
    """End this worker when its parent is gone, however it went: an orphan would hold locks and cores."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
