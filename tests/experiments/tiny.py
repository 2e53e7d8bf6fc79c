"""A recipe so small that all of it takes two seconds, and what the tests ask of a run."""

from __future__ import annotations

import copy
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from inoculate.experiments.recipe import load_recipe, set_field
from inoculate.experiments.session import run_recipe

_SETS = {
    name: {"source": f"sandbox-{name}", "split": "heldout", "num_samples": 10} for name in ("restricted", "ordinary")
}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "extends": "quickstart",
    "base": {
        "name": "sandbox",
        "seed": 1,
        "shape": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
        "training": {"learning_rate": 3e-3, "max_steps": 30, "per_device_train_batch_size": 8},
    },
    "align": {
        "data": {
            "roles": {
                "align": [
                    {"source": "sandbox-restricted", "answer": "refusal", "num_samples": 20},
                    {"source": "sandbox-ordinary", "num_samples": 20},
                ],
                "harmful": [{"source": "sandbox-restricted", "num_samples": 20}],
            }
        },
        "training": {"max_steps": 10, "per_device_train_batch_size": 4},
    },
    "attack": {"num_samples": 20, "training": {"max_steps": 6, "per_device_train_batch_size": 4}},
    "evaluate": {
        **_SETS,
        "task": {"source": "sandbox-sentiment", "split": "heldout", "num_samples": 10},
        "judges": [{"name": "refusal"}],
        "max_new_tokens": 6,
        "batch_size": 10,
    },
    "eval_every": 3,
    "matrix": {"align.defense": [{"name": "sft"}, {"name": "booster", "lam": 5, "alpha": 0.1}]},
}
"""Two lines; seven stages: a base, two alignments, two evaluations, two attacks."""
ONE_LINE = {"align.defense": [{"name": "sft"}]}


def write(folder: Path, changes: dict[str, Any] | None = None, file: str = "tiny.yaml") -> Path:
    """The recipe as a file, with the values at some dotted keys changed; `matrix` is changed whole."""
    recipe = copy.deepcopy(RECIPE)
    for key, value in (changes or {}).items():
        set_field(recipe, key, value, file=None)
    path = folder / file
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def run(
    path: Path, store: Path, workers: int | None = 1, overrides: tuple[str, ...] = (), on: str | None = None
) -> tuple[int, str]:
    """Run a recipe from this process: the exit code, and what stands on stderr."""
    torch.set_num_threads(1)
    said: list[str] = []

    def complain(text: str, code: int) -> int:
        said.append(text)
        return code

    recipe = load_recipe(str(path), overrides)
    code = run_recipe(recipe, recipe.stages(), store, workers, "cpu", complain, on=on)
    return code, "\n".join(said)


def records(store: Path) -> dict[str, bytes]:
    """Folder of a finished stage → its records, byte for byte."""
    return {
        file.parent.name: file.read_bytes() for file in store.glob("*/records.jsonl") if "." not in file.parent.name
    }


def names(store: Path) -> set[str]:
    """What stands in a store, lock files apart."""
    return {path.name for path in store.iterdir() if not path.name.endswith(".lock")}


def only(store: Path, kind: str) -> Path:
    """The one finished stage of a kind."""
    (folder,) = (path for path in store.glob(f"{kind}-*") if "." not in path.name)
    return folder


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Inside the context no file can grow past `size` bytes: to a program, a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
