"""YAML as plain data: mappings with text for keys, lists, text, numbers, truth values and null.

What a stranger's file may hold beside that (dates, bytes, circles, anchors that unfold without end) is refused by name.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from inoculate.core.errors import InputError

_MOST_BYTES = 1 << 20
_DEEPEST = 40
_MOST_VALUES = 200_000
_LARGEST = 2**63
_QUOTE = "text, in quotes"


def read_yaml(path: Path) -> Any:
    """The value that a file holds.

    Raises:
        InputError: for a file that cannot be read or is not YAML, and as `plain`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror or error}", file=path) from None
    if len(data) > _MOST_BYTES:
        raise InputError("too large for a recipe", file=path, expected=f"at most {_MOST_BYTES:,} bytes")
    try:
        return parse_yaml(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"not valid YAML: not UTF-8 at byte {error.start}", file=path) from None
    except InputError as error:
        raise error.located(file=path) from None


def parse_yaml(text: str) -> Any:
    """The value that a text stands for.

    Raises:
        InputError: if it is not YAML, or not plain data, naming the field.
    """
    try:
        value = yaml.safe_load(text)
    except RecursionError:
        raise InputError("not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError, LookupError) as error:
        # Beside its own errors, PyYAML lets through those of int(), float(), date() and of wrong nodes under a tag.
        raise InputError(f"not valid YAML: {' '.join(str(error).split())}") from None
    _check(value, [], _Count())
    return value


class _Count:
    """Values seen: an anchor that is used again is counted again, as it would be copied."""

    def __init__(self) -> None:
        self.seen = 0


def _check(value: Any, trail: list[str], count: _Count) -> None:
    field = ".".join(trail) or None
    count.seen += 1
    if count.seen > _MOST_VALUES:
        raise InputError("too many values; anchors count wherever they are used", expected=f"at most {_MOST_VALUES:,}")
    if len(trail) > _DEEPEST:
        raise InputError("nested too deeply, or in a circle", field=".".join(trail[:5]) + "…")
    if isinstance(value, dict):
        for key, below in value.items():
            if not isinstance(key, str):
                raise InputError("a key that is no text", field=field, found=key, expected=_QUOTE)
            _check_text(key, field)
            _check(below, [*trail, key], count)
    elif isinstance(value, list):
        for index, below in enumerate(value):
            _check(below, [*trail, str(index)], count)
    else:
        _check_scalar(value, field)


def _check_scalar(value: Any, field: str | None) -> None:
    if isinstance(value, str):
        _check_text(value, field)
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int):
        if abs(value) >= _LARGEST:
            raise InputError("a number too large", field=field, expected="less than 2^63")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InputError("not a finite number", field=field, found=value)
    else:
        raise InputError(f"a YAML {type(value).__name__}, which no field takes", field=field, expected=_QUOTE)


def _check_text(text: str, field: str | None) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"not a text: {error.reason}", field=field, found=text) from None
