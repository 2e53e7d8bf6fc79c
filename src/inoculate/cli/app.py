"""The command itself: what its verbs share, and the two ways in which they speak."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from cyclopts import App, Parameter

from inoculate import __version__
from inoculate.core import ranks
from inoculate.core.errors import InputError
from inoculate.core.text import one_line

if TYPE_CHECKING:
    from inoculate.experiments.recipe import Recipe
    from inoculate.experiments.stage import Stage

app = App(
    name="inoculate",
    version=__version__,
    help="Make language models hard to turn harmful by fine-tuning, and measure honestly how hard.",
    suppress_keyboard_interrupt=False,  # `main` answers it
)

Overrides: TypeAlias = Annotated[
    tuple[str, ...], Parameter(name="--set", help="Override a field: a.b.c=value. May be repeated.")
]
StorePath: TypeAlias = Annotated[Path, Parameter(name="--store", help="Folder that keeps the results.")]
Workers: TypeAlias = Annotated[
    int | None,
    Parameter(
        help="Processes that share stages, and trials of a search: 1, or on a cluster as many as it has room for."
    ),
]
On: TypeAlias = Annotated[
    str | None,
    Parameter(
        name="--on",
        help="Run on a Ray cluster: ray (the cluster of RAY_ADDRESS, else one on this machine) or ray://HOST:PORT. All "
        "nodes must see the store.",
    ),
]
Storage: TypeAlias = Annotated[
    str | None,
    Parameter(
        help="Database that keeps studies of attacks, sqlite:///FILE or postgresql+psycopg://…; by default each is a "
        "journal beside its results."
    ),
]
MeasuredIn: TypeAlias = Annotated[
    Path | None,
    Parameter(name="--store", help="Store with evaluations, attacks or searches on this model, for its model card."),
]
Kind: TypeAlias = Literal["recipes", "defenses", "attacks", "judges", "tasks", "sources", "models", "worlds"]


def complain(message: str, code: int) -> int:
    if ranks.first():
        sys.stderr.write(f"inoculate: {one_line(message)}\n")
    return code


def say(text: str) -> None:
    if ranks.first():
        sys.stdout.write(text.rstrip("\n") + "\n")


def run_into(
    out: Path,
    kind: type[Stage],
    value: dict[str, Any],
    overrides: tuple[str, ...],
    device: str,
    complete: Callable[[dict[str, Any]], None] | None = None,
) -> int:
    """One stage on the user's own model and files, its folder moved to `out`."""
    from inoculate.experiments.one_stage import run_one

    return run_one(out, kind, value, overrides, device, say, complete)


def check_workers(workers: int | None) -> None:
    if workers is not None and workers < 1:
        raise InputError("at least one process is needed", field="--workers", found=workers)


def run_stages(
    recipe: Recipe, store: Path, workers: int | None, device: str, storage: str | None, on: str | None
) -> int:
    from inoculate.experiments.session import run_recipe

    return run_recipe(recipe, recipe.stages(), store, workers, device, complain, storage, on)
