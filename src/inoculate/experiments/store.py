"""The store: one folder per stage, named by kind and hash. Work happens in `.partial`; a rename is the commit."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout

from inoculate.core import ranks
from inoculate.core.errors import InoculateError, InputError, StageError
from inoculate.core.records import Record, write_records
from inoculate.core.whole import check_files, read_about, sizes, write_whole
from inoculate.experiments.stage import Context, Stage, plugins_in


class Store:
    """Results by content. A folder without `.partial` or `.failed` in its name is whole.

    Raises:
        InputError: if the folder cannot be made or written.
    """

    def __init__(self, path: Path, option: str = "--store") -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".write-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"the folder cannot be written: {error.strerror}", file=path, field=option) from None

    def folder(self, stage: Stage) -> Path:
        """Where the stage's result is, or will be."""
        return self.path / stage.folder

    def has(self, stage: Stage) -> bool:
        """Whether the stage is done."""
        return (self.folder(stage) / "stage.json").exists()

    def status(self, stage: Stage) -> str | None:
        """`ok` or `diverged` for a stage that is done, else None."""
        return read_about(self.folder(stage))["status"] if self.has(stage) else None

    def verify(self, stage: Stage) -> None:
        """Refuse a finished folder that was damaged since.

        Raises:
            InputError: naming the file that is torn, missing or shorter than it was.
        """
        check_files(self.folder(stage), read_about(self.folder(stage)))

    def progress_file(self, stage: Stage) -> Path:
        """Where a running stage says how far it is: two integers."""
        return self.path / f"{stage.folder}.partial" / "progress"

    def run(self, stage: Stage, context: Context) -> bool:
        """Run a stage unless it is done; a cut-off run is resumed from its checkpoint.

        All processes of a launch call it alike. The first one writes; what the others write goes nowhere.

        Returns:
            Whether it was computed now.

        Raises:
            StageError: if the stage fails; what it left stays in `.partial`, and a `failed` record beside it.
            SystemExit: of one process among several, which leave together.
        """
        if ranks.count() > 1 and not stage.parallel:
            return ranks.by_the_first(lambda: self.run(stage, context))
        partial = self.path / f"{stage.folder}.partial"
        with ExitStack() as leaving:
            if ranks.rank() == 0:
                leaving.callback(self._own(stage, partial, context).release)
            if ranks.told(self.has(stage)):
                return False
            out = partial if ranks.rank() == 0 else Path(leaving.enter_context(TemporaryDirectory()))
            try:
                self._compute(stage, out, context)
            except Exception as error:
                if ranks.count() > 1 and not isinstance(error, InputError):  # which is the same in every process
                    raise SystemExit(f"inoculate: {stage.label()}: {type(error).__name__}: {error}") from error
                if isinstance(error, OSError):
                    raise StageError(f"{error.strerror or error} ({error.filename or partial})") from error
                raise
            ranks.told(None)  # the folder has its name
            return True

    def _own(self, stage: Stage, partial: Path, context: Context) -> FileLock:
        """The stage's lock, once it is ours. While another process is at it, some of its work may be shared."""
        lock = FileLock(self.path / f".{stage.folder}.lock")
        above = {stage.folder: self.folder(stage) for stage in stage.upstream()}
        while True:
            try:
                lock.acquire(timeout=1.0)
                return lock
            except Timeout:
                try:
                    if partial.exists():
                        stage.assist(partial, above, context)
                except (InoculateError, OSError):
                    if partial.exists():  # else the other one is done, and its folder has its final name
                        raise

    def _compute(self, stage: Stage, out: Path, context: Context) -> None:
        """Run the stage in `out`; the first process's folder gets its final name."""
        out.mkdir(exist_ok=True)
        started, clock = datetime.now(UTC), time.monotonic()
        upstream = {above.folder: self.folder(above) for above in stage.upstream()}
        try:
            status = stage.run(out, upstream, context)
        except Exception as error:
            if ranks.rank() == 0:
                self.note_failure(stage, context, f"{type(error).__name__}: {error}")
            raise
        if ranks.rank() > 0:
            return
        (out / "progress").unlink(missing_ok=True)
        about = {
            "kind": stage.kind,
            "hash": stage.hash,
            "label": stage.label(),
            "value": stage.model_dump(mode="json"),
            "fingerprints": stage.fingerprints(),
            "upstream": list(upstream),
            "status": status,
            "unmeasured": list(stage.unmeasured()),
            "files": sizes(out),
            "started": started.isoformat(timespec="seconds"),
            "wall_s": round(time.monotonic() - clock, 3),
            "peak_memory_gib": round(peak_memory_gib(), 3),
            "environment": environment(),
            "plugins": plugins_in(stage),
        }
        write_json(out / "stage.json", about)
        shutil.rmtree(self.path / f"{stage.folder}.failed", ignore_errors=True)
        out.rename(self.folder(stage))

    def note_failure(self, stage: Stage, context: Context, why: str) -> None:
        """Leave a `failed` record of a stage, and why; the next run that succeeds removes it."""
        folder, partial = (self.path / f"{stage.folder}.{end}" for end in ("failed", "partial"))
        for half in ("records.jsonl", "responses.jsonl"):
            (partial / half).unlink(missing_ok=True)  # on a full disk, their room is what the row needs
        try:
            folder.mkdir(exist_ok=True)
            blank = stage.provenance()
            write_records(folder / "records.jsonl", [_failure(blank, context.recipe)])
            write_json(folder / "error.json", {"label": stage.label(), "error": why})
        except OSError:  # the disk is full: no torn record, and the error itself still reaches the caller
            shutil.rmtree(folder, ignore_errors=True)


def _failure(blank: Record, recipe: str) -> Record:
    from dataclasses import replace

    return replace(blank, recipe=recipe, metric="harmful_score", value=None, status="failed")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_whole(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def peak_memory_gib() -> float:
    """Peak resident memory of this process, GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@cache
def _packages() -> dict[str, str]:
    """Read once: a look through all that is installed takes longer than a small stage's records do."""
    return {name: version(name) for name in ("torch", "transformers", "peft", "accelerate", "tokenizers")}


def environment() -> dict[str, str]:
    """Versions that a result may depend on."""
    import torch

    from inoculate import __version__

    several = {"processes": str(ranks.count())} if ranks.count() > 1 else {}
    return {
        "inoculate": __version__,
        "python": platform.python_version(),
        **_packages(),
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
        **several,
    }
