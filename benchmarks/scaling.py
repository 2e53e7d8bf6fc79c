"""What a second worker brings, what the store costs, and how long a worker takes to start.

    python benchmarks/scaling.py [--seeds 6] [--steps 300] [--repeats 3] [--on ray] [--json FILE]

Efficiency: one study in the sandbox (`--seeds` alignments with Booster, each attacked and evaluated) by the command in
a process of its own, with one worker and with two: (seconds with 1) / (2 × seconds with 2), start-up included. The base
model is made before, once, since all stages wait for it. `--on ray` starts a cluster on this machine for every run, and
gives both sides one processor per stage; its start is in the seconds.

Store: in this process, the seconds of `Store.run` that are not `Stage.run`, and inside it those that write records and
responses, as a share of all. Start: from an empty crew of one worker to the end of a stage that does nothing but import
what a stage needs. Seconds by the clock, medians; two quiet cores are needed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from inoculate.core.records import Record, write_records
from inoculate.experiments.crew import Processes
from inoculate.experiments.recipe import load_recipe
from inoculate.experiments.runner import in_order
from inoculate.experiments.stage import Context, Stage
from inoculate.experiments.store import Store

RECORDING = ("write_records", "write_responses")


class Idle(Stage):
    """Imports what a stage needs, one with a LoRA or one without."""

    kind: ClassVar[str] = "idle"
    lora: bool = False

    def run(self, out: Path, upstream: Mapping[str, Path], context: Context) -> str:
        import accelerate  # noqa: F401
        import transformers.models.llama.modeling_llama  # noqa: F401

        if self.lora:
            import peft  # noqa: F401

        write_records(out / "records.jsonl", [Record(metric="none", value=0.0, stage=self.folder)])
        return "ok"


def study(folder: Path, seeds: int, steps: int) -> Path:
    """A recipe whose lines need nothing of each other but the base model."""
    recipe = {
        "extends": "quickstart",
        "name": "scaling",
        "base": {"name": "sandbox", "seed": 1, "training": {"learning_rate": 3e-3, "max_steps": 200}},
        "align": {"training": {"max_steps": steps}},
        "attack": {"training": {"max_steps": steps}},
        "eval_every": 50,
        "matrix": {"align.defense": [{"name": "booster"}], "align.training.seed": list(range(1, seeds + 1))},
    }
    file = folder / "scaling.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def seconds(recipe: Path, base: Path, store: Path, workers: int, on: str | None) -> float:
    """One run of the command on a fresh copy of the store that has the base model."""
    shutil.copytree(base, store)
    place = ["--on", on] if on else []
    command = ["run", str(recipe), "--store", str(store), "--workers", str(workers), "--device", "cpu", *place]
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "inoculate", *command], check=True, capture_output=True)
    took = time.monotonic() - began
    shutil.rmtree(store)
    return took


def overhead(recipe: Path, folder: Path) -> dict[str, list[float]]:
    """Kind of stage → for each of its stages, the share of its seconds that the store and records took."""
    store, spent, shares = Store(folder), [0.0], {}

    def timed(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[0] += time.perf_counter() - began

        return call

    stages = in_order(load_recipe(str(recipe)).stages())
    for module in [module for name, module in sys.modules.items() if name.startswith("inoculate.experiments")]:
        for name in RECORDING:
            if hasattr(module, name):
                setattr(module, name, timed(getattr(module, name)))
    for stage in stages:
        kind, inside = type(stage), [0.0]

        def run(self: Stage, *arguments: Any, real: Any = kind.run, inside: list[float] = inside) -> str:
            began = time.perf_counter()
            try:
                return real(self, *arguments)
            finally:
                inside[0] = time.perf_counter() - began

        real, kind.run = kind.run, run
        began, spent[0] = time.perf_counter(), 0.0
        store.run(stage, Context(device="cpu", progress=lambda *_: None))
        whole, kind.run = time.perf_counter() - began, real
        shares.setdefault(stage.kind, []).append((whole - inside[0] + spent[0]) / whole)
    return shares


def start_up(folder: Path, lora: bool) -> float:
    """Seconds until a new worker has done its first, empty stage."""
    store = Store(folder)
    began = time.monotonic()
    with Processes(store, Context(), 1) as crew:
        crew.start(Idle(lora=lora), 1)
        while not (ended := list(crew.ended())):
            continue
    took = time.monotonic() - began
    if ended[0][1] is not True:
        raise SystemExit(f"the stage failed: {ended[0][1]}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--on", help="ray: tasks of a cluster in place of processes")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shares = overhead(study(folder, 1, given.steps), folder / "one")
        base = folder / "base"
        base.mkdir()
        recipe = study(folder, given.seeds, given.steps)
        (made,) = (path for path in (folder / "one").glob("base-*") if path.is_dir())
        shutil.copytree(made, base / made.name)
        runs: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(given.repeats):
            for workers, took in runs.items():
                took.append(seconds(recipe, base, folder / "store", workers, given.on))
        starts = {
            lora: [start_up(folder / f"{lora}-{i}", lora) for i in range(given.repeats)] for lora in (False, True)
        }
    one, two = (statistics.median(took) for took in runs.values())
    worst = {kind: max(found) for kind, found in shares.items()}
    print(f"{3 * given.seeds} stages: 1 worker {one:.1f} s, 2 workers {two:.1f} s (medians of {given.repeats})")
    print(f"efficiency of 2 workers: {one / (2 * two):.2f} (asked for: ≥ 0.8)")
    kinds = ", ".join(f"{kind} {share:.2%}" for kind, share in worst.items())
    print(f"store and records, share of a stage: {kinds} (asked for: ≤ 2 %)")
    plain, with_lora = (statistics.median(starts[lora]) for lora in (False, True))
    print(f"start of a worker: {plain:.1f} s, for stages with a LoRA {with_lora:.1f} s (asked for: ≤ 5)")
    if given.json:
        given.json.write_text(json.dumps({"runs_s": runs, "overhead": shares, "start_s": starts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
