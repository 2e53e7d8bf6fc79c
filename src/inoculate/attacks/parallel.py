"""The batched engine over several processes: for one attack on one start. A recipe's stages are spread by its runner.

Threads do not serve: a step is many small operations, and the interpreter's lock is held between them.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from typing import Any

import torch
from torch import nn

from inoculate.attacks.engine import train
from inoculate.attacks.sequential import Curve, Examples, Trial
from inoculate.core.errors import StageError


class Processes:
    """An engine for `FewShot.run` that gives each of `workers` processes, this one among them, a share of the trials.

        with Processes(2) as engine:
            FewShot(num_samples=20).run(body, pool, validation, heldout, classes=2, engine=engine)

    The others are started once, which takes some seconds, and end with the `with` block. On the processor only.

    Raises:
        StageError: from a call, if a process has died.
    """

    def __init__(self, workers: int = 2) -> None:
        if workers < 1:
            raise ValueError(f"workers: expected at least 1, found {workers}")
        self.workers = workers
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(max(1, workers - 1), spawn, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> Processes:
        for _ in self._pool.map(abs, range(self.workers - 1)):
            pass
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(
        self,
        body: nn.Module,
        pool: Examples,
        validation: Examples,
        heldout: Examples | None,
        trials: Sequence[Trial],
        *,
        classes: int,
        eval_steps: int,
    ) -> list[Curve]:
        """As `inoculate.attacks.engine.train`: the same curves up to rounding, in the order of `trials`."""
        options: dict[str, Any] = {"classes": classes, "eval_steps": eval_steps}
        shares = [share for share in _shares(trials, self.workers) if share]
        parts = [(body, pool, validation, heldout, [trials[i] for i in share]) for share in shares]
        try:
            others = [self._pool.submit(train, *part, **options) for part in parts[1:]]
            found = [train(*part, **options) for part in parts[:1]] + [other.result() for other in others]
        except BrokenProcessPool as error:
            raise StageError("a process of the few-shot attack died (out of memory, or killed)") from error
        curves = dict(zip(chain(*shares), chain(*found), strict=True))
        return [curves[i] for i in range(len(trials))]


def _shares(trials: Sequence[Trial], workers: int) -> list[list[int]]:
    """Numbers of the trials for each process: from the dearest on, each to the one with the least work so far."""
    shares: list[list[int]] = [[] for _ in range(workers)]
    work = [0] * workers
    for i in sorted(range(len(trials)), key=lambda i: (trials[i].frozen, -trials[i].steps * trials[i].rows_per_step)):
        least = work.index(min(work))
        shares[least].append(i)
        work[least] += 0 if trials[i].frozen else trials[i].steps * trials[i].rows_per_step
    return shares
