"""From pydantic's errors to the one clear message: which field, what was found, what was expected, the nearest name."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from inoculate.core.errors import InputError, nearest
from inoculate.core.plugins import OneOf

_FEW = 20
"""So many names can be read in one message."""
_EXPECTED = {
    "extra_forbidden": "unknown field",
    "missing": "a required field is missing",
    "union_tag_invalid": "unknown name",
    "union_tag_not_found": "the field `name` is missing",
}


def input_error(error: ValidationError, model: type[BaseModel], raw: Any, file: object) -> InputError:
    """The first of pydantic's errors, as an InputError."""
    first = error.errors(include_url=False)[0]
    path, context = first["loc"], first.get("ctx", {})
    kind = first["type"]
    field = ".".join(str(part) for part in _without_tags(path, raw, missing=kind == "missing")) or None
    if kind == "extra_forbidden":
        known = sorted({name for owner in _models_at(model, path[:-1]) for name in owner.model_fields})
        elsewhere = _elsewhere([model], raw, str(path[0])) if len(path) == 1 else []
        if elsewhere:
            expected = " or ".join(elsewhere)
            return InputError("unknown field", file=file, field=field, found=str(path[-1]), expected=expected)
        near = nearest(str(path[-1]), known)
        expected = "one of " + ", ".join(known) if near is None and 0 < len(known) <= _FEW else None
        return InputError("unknown field", file=file, field=field, found=str(path[-1]), expected=expected, known=known)
    if kind == "union_tag_invalid":
        known = [name.strip(" '\"") for name in str(context["expected_tags"]).split(",")]
        expected = "one of " + ", ".join(known)
        name = f"{field}.name" if field else "name"
        return InputError("unknown name", file=file, field=name, found=context["tag"], expected=expected, known=known)
    if kind in _EXPECTED:
        return InputError(_EXPECTED[kind], file=file, field=field)
    message = first["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return InputError(message, file=file, field=field)
    known = [name.strip(" '\"") for name in str(context.get("expected", "")).replace(" or ", ",").split(",")]
    expected = message.removeprefix("Input should be ")
    return InputError("wrong value", file=file, field=field, found=first["input"], expected=expected, known=known)


def _elsewhere(owners: Iterable[type[BaseModel]], raw: Any, name: str, depth: int = 2) -> list[str]:
    """Where a field of this name may stand further down, `attack.training` for `training`: the places least far."""
    here, below = set(), set()
    for owner in owners:
        for field in owner.model_fields:
            given = raw.get(field) if isinstance(raw, dict) else None
            written = set(given) if isinstance(given, dict) else set()
            inner = [m for m in _models_at(owner, [field]) if m is not owner and written <= set(m.model_fields)]
            if any(name in m.model_fields for m in inner):
                here.add(f"{field}.{name}")
            elif depth > 1:
                below |= {f"{field}.{place}" for place in _elsewhere(inner, given, name, depth - 1)}
    return sorted(here or below)


def _without_tags(path: Sequence[str | int], raw: Any, *, missing: bool) -> Iterator[str | int]:
    """The path as the user wrote it: pydantic also names the branch of a tagged union.

    Args:
        missing: the error is that the last part is not there.
    """
    here = raw
    for i, part in enumerate(path):
        written = isinstance(here, list | tuple) or (isinstance(here, dict) and part in here)
        if not written and not (missing and i == len(path) - 1):
            continue
        yield part
        if isinstance(here, dict):
            here = here.get(part)
        elif isinstance(here, list | tuple) and isinstance(part, int) and part < len(here):
            here = here[part]


def _models_at(model: type[BaseModel], path: Sequence[str | int]) -> list[type[BaseModel]]:
    """The models that may stand at a path, to propose their field names."""
    here = [model]
    for part in path:
        tagged = [m for m in here if "name" in m.model_fields and part in get_args(m.model_fields["name"].annotation)]
        below = [
            inner
            for m in here
            if part in m.model_fields
            for annotation in (m.model_fields[str(part)].annotation, *m.model_fields[str(part)].metadata)
            for inner in _models_in(annotation)
        ]
        here = tagged or below or here
    return here


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, OneOf):
        return annotation.classes()
    if get_origin(annotation) in (Annotated, Union, types.UnionType, tuple, list, dict):
        return [model for inner in get_args(annotation) for model in _models_in(inner)]
    return []
