"""One stage on the user's own model and files: align, finetune, evaluate."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from inoculate.core.errors import InputError
from inoculate.experiments.blame import input_error
from inoculate.experiments.recipe import set_field
from inoculate.experiments.session import Show
from inoculate.experiments.stage import Context, Stage
from inoculate.experiments.store import Store


def run_one(
    out: Path,
    kind: type[Stage],
    value: dict[str, Any],
    overrides: Sequence[str],
    device: str,
    say: Callable[[str], None],
) -> int:
    """Validate, run in a store beside `out`, and move the finished folder to `out`. A cut-off run resumes.

    Raises:
        InputError: if a field is wrong or `out` exists.
    """
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign:
            raise InputError("not of the form a.b.c=value", file="--set", found=override)
        set_field(value, key, yaml.safe_load(text), file="--set")
    try:
        stage = kind.model_validate(value)
    except ValidationError as error:
        raise input_error(error, kind, value, None) from None
    if out.exists():
        raise InputError("exists already", file=out, field="--out", expected="a new folder")
    stage.hash  # noqa: B018  reads every file's fingerprint: wrong data are an input error, found before any work
    store = Store(out.parent / f".{out.name}.work")
    with Show(kind.kind) as show:
        folder = store.run(stage, Context(device=device, progress=show.steps))
    folder.rename(out)
    shutil.rmtree(store.path)
    say(f"{out}: {stage.label()}")
    return 0
