"""The model that a stage works on: one that this experiment aligns, or one that exists."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from inoculate.core.errors import InoculateError
from inoculate.core.records import Record
from inoculate.evals.served import Served
from inoculate.experiments.align import Align
from inoculate.experiments.base import Pretrained, base_fingerprint
from inoculate.experiments.stage import Input
from inoculate.models.load import load_model, load_tokenizer

Model = Align | Pretrained


def open_model(model: Model, upstream: Mapping[str, Path]) -> tuple[Any, Any]:
    """The model, its adapter trainable if it has one, and its tokenizer."""
    if isinstance(model, Pretrained):
        address, revision, dtype = model.name_or_path, model.revision, model.dtype
    else:
        address, revision = str(upstream[model.folder]), None
        dtype = model.base.dtype if isinstance(model.base, Pretrained) else "float32"
    return load_model(address, revision=revision, dtype=dtype, is_trainable=True), load_tokenizer(address, revision)


def inputs_of(model: Model | Served) -> Iterable[Input]:
    """What the model starts from."""
    return model.inputs() if isinstance(model, Align) else (model,)


def name_of(model: Model | Served) -> str:
    """The model in a few words."""
    if isinstance(model, Served):
        return f"{model.model} at {model.base_url}"
    return model.label() if isinstance(model, Align) else model.name_or_path


def origin(model: Model | Served) -> Record:
    """A record of the model with every column but the measurement."""
    if isinstance(model, Served):
        return Record(metric="", value=0.0, base=model.model, base_params={"base_url": model.base_url})
    if isinstance(model, Align):
        return model.provenance()
    return replace(
        Record(metric="", value=0.0, base=model.name_or_path, defense="none"), **_made_by(model.name_or_path)
    )


def _made_by(address: str) -> dict[str, Any]:
    """Of a folder that `align` wrote, the defense that its model was aligned with; of others nothing is known."""
    file = Path(address) / "stage.json"
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        made = Align.model_validate(about["value"]).provenance() if about["kind"] == Align.kind else None
    except (OSError, ValueError, KeyError, TypeError, InoculateError):
        return {}
    names = ("defense", "defense_params", "defense_seed")
    return {} if made is None else {name: getattr(made, name) for name in names}


def model_fingerprint(model: Model | Served) -> dict[str, str]:
    """What the model is, where its address alone does not say."""
    return base_fingerprint(model) if isinstance(model, Pretrained) else {}
