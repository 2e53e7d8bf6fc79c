"""The command, held at a moment until it is struck: `python -m tests.experiments.held MOMENT FILE run …`.

A moment is a stage's kind and a step, `align:1`. The process that comes there first makes FILE and waits, so that a test
strikes where it means to, however fast or busy the machine is. Worker processes import this module too, and hold alike.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from inoculate.cli import main
from inoculate.experiments import crew, runner
from inoculate.experiments.stage import Stage
from inoculate.experiments.store import Store

HELD_S = 400.0
KIND, _, STEP = sys.argv[1].partition(":")
FILE = Path(sys.argv[2])
_progress_of = crew.progress_of


def progress_of(store: Store, stage: Stage, tell: Callable[[], None] | None = None) -> Callable[[int, int], None]:
    told = _progress_of(store, stage, tell)

    def progress(step: int, steps: int) -> None:
        told(step, steps)
        if stage.kind == KIND and step == int(STEP):
            FILE.touch()
            time.sleep(HELD_S)

    return progress


crew.progress_of = runner.progress_of = progress_of

if __name__ == "__main__":
    main(sys.argv[3:])
