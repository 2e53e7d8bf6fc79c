"""Stages that cost nothing, for the store and the runner. In a module of their own, so that workers can import them."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from inoculate.core.errors import InputError
from inoculate.core.records import Record, write_records
from inoculate.experiments.stage import Context, Stage


class Awkward(Exception):
    """An exception that pickle cannot rebuild."""

    def __init__(self, *, what: str) -> None:
        super().__init__(what)


class Toy(Stage):
    """Counts its runs in a file beside the store, then does what it is told."""

    kind: ClassVar[str] = "toy"
    name: str
    above: tuple[Toy, ...] = ()
    does: Literal["ok", "raise", "refuse", "awkward", "full", "diverge", "die", "hold"] = "ok"

    def upstream(self) -> Sequence[Stage]:
        return self.above

    def label(self) -> str:
        return f"toy {self.name}"

    def run(self, out: Path, upstream: Mapping[str, Path], context: Context) -> str:
        with (out.parent.parent / "order.txt").open("a") as order:
            order.write(f"{self.name}\n")
        assert all((folder / "stage.json").exists() for folder in upstream.values())
        (out / "half.txt").write_text(self.name)
        if (out.parent.parent / "healed").exists():
            self.measure(out, context)
            return "ok"
        match self.does:
            case "raise":
                raise RuntimeError("something broke")
            case "refuse":
                raise InputError("not good", field="toy.name", found=self.name, expected="another", known=["b2"])
            case "awkward":
                raise Awkward(what="cannot travel")
            case "full":
                (out / "records.jsonl").write_text('{"metric": "harm')
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out / "model.safetensors"))
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hold":
                wait_for(out.parent.parent / "released")
        self.measure(out, context)
        return "diverged" if self.does == "diverge" else "ok"

    def measure(self, out: Path, context: Context) -> None:
        blank = Record(metric="harmful_score", value=0.5, stage=self.folder, recipe=context.recipe)
        write_records(out / "records.jsonl", [blank])


class Shared(Toy):
    """A stage that cannot end without help from a second process."""

    kind: ClassVar[str] = "shared"

    def run(self, out: Path, upstream: Mapping[str, Path], context: Context) -> str:
        wait_for(out / "helped")
        return super().run(out, upstream, context)

    def assist(self, out: Path, upstream: Mapping[str, Path], context: Context) -> None:
        (out / "helped").touch()


def wait_for(file: Path, patience_s: float = 100.0) -> None:
    deadline = time.monotonic() + patience_s
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} never came"
        time.sleep(0.05)


def ran(folder: Path) -> list[str]:
    """Names of the stages that were run, in order, each as often as it was."""
    file = folder / "order.txt"
    return file.read_text().split() if file.exists() else []
