"""Local files of rows: JSON lines, a JSON array, CSV or Parquet.

A row has `prompt` and `completion` (text), or `messages` (a list of {role, content}, the last one the assistant's).
Optional columns: `refusal`, the source's own refusal of the prompt; `split`, the split the row belongs to. A file
without a `split` column is one pool: it serves every split whole, and the caller sees to it that an attacker does not
get the defender's file.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from inoculate.core.errors import InputError, nearest
from inoculate.core.hashing import file_sha256
from inoculate.core.types import Example
from inoculate.data.splits import Row

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_SCHEMA = "columns `prompt` and `completion`, or `messages`"
_COLUMNS = {"prompt", "completion", "messages", "refusal", "split"}
_PEEK = 5
_MAX_FIELD = 1 << 30


def read(path: Path, split: str) -> list[Row]:
    """All rows of a file that belong to `split`.

    Raises:
        InputError: naming the file and the line or row of a mistake, or if there is no row.
    """
    try:
        content = file_sha256(path)
    except OSError:
        return list(_read(path, split))  # which says what is wrong
    return list(_read_once(path, split, content))


@lru_cache(maxsize=4)
def _read_once(path: Path, split: str, _content: str) -> tuple[Row, ...]:
    """A file is looked at for what it holds, for whom it must be kept from, and for training: it is parsed once."""
    return _read(path, split)


def _read(path: Path, split: str) -> tuple[Row, ...]:
    rows, others = [], set()
    for place, record in records(path):
        named = record.get("split", split)
        if named == split:
            rows.append(row_of(record, path, place))
        else:
            others.add(str(named))
    if not rows:
        if others:
            raise InputError(
                "no row of this split", file=path, field="split", found=split, expected=_any(others), known=others
            )
        raise InputError("the file has no rows", file=path)
    return tuple(rows)


def check(path: Path) -> None:
    """Look at the first rows only.

    Raises:
        InputError: as `read`.
    """
    first = list(islice(records(path), _PEEK))
    if not first:
        raise InputError("the file has no rows", file=path)
    for place, record in first:
        row_of(record, path, place)


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) pairs, read as they are asked for; a place is `line 7` or `row 7`, counted from 1.

    Raises:
        InputError: if the file is missing, unreadable, not UTF-8 or not of its suffix's format.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            "not a kind of data file", file=path, found=path.suffix, expected=_any(SUFFIXES), known=SUFFIXES
        )
    try:
        yield from reader(path)
    except FileNotFoundError:
        near = sorted(other.name for other in path.parent.glob("*")) if path.parent.is_dir() else []
        raise InputError("no such file", field="data", found=str(path), known=_beside(path, near)) from None
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror or error}", file=path) from None


def row_of(record: Mapping[str, Any], file: object, place: str) -> Row:
    """A record as a row.

    Raises:
        InputError: for a missing column or a value of the wrong type.
    """
    refusal = text_of(record, "refusal", file, place) if record.get("refusal") not in (None, "") else None
    if "messages" in record:
        return Row(_conversation(record["messages"], file, place), refusal)
    prompt, completion = (text_of(record, column, file, place) for column in ("prompt", "completion"))
    return Row(Example.of(prompt, completion), refusal)


def text_of(record: Mapping[str, Any], column: str, file: object, place: str) -> str:
    """The text in a column.

    Raises:
        InputError: if the column is missing or does not hold text.
    """
    if column not in record:
        near = nearest(column, set(record) - _COLUMNS)
        hint = f"; {near!r} may be meant" if near else ""
        raise InputError(
            f"column {column!r} is missing{hint}",
            file=file,
            field=place,
            found=", ".join(map(str, record)) or "no columns",
            expected=_SCHEMA if column in ("prompt", "completion") else f"a column {column!r}",
        )
    value = record[column]
    if not isinstance(value, str):
        raise InputError("wrong type", file=file, field=f"{place}, {column}", found=value, expected="text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"not a text: {error.reason}", file=file, field=f"{place}, {column}") from None
    return value


def _conversation(messages: Any, file: object, place: str) -> Example:
    field, expected = f"{place}, messages", "a list of {role, content}, a user's before the assistant's at the end"
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise InputError("wrong type", file=file, field=field, found=messages, expected=expected)
    turns = [(turn.get("role"), text_of(turn, "content", file, field)) for turn in messages]
    roles = [role for role, _ in turns]
    known = ("system", "user", "assistant")
    for role in roles:
        if role not in known:
            raise InputError("no such role", file=file, field=field, found=role, expected=_any(known), known=known)
    if roles[-2:] != ["user", "assistant"]:
        raise InputError("wrong order of turns", file=file, field=field, found=roles, expected=expected)
    return Example(turns=tuple(turns[:-1]), completion=turns[-1][1])


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as lines:  # split at \n alone: texts may hold other line breaks of Unicode
        for number, line in enumerate(lines, start=1):
            place = f"line {number}"
            text = _decoded(line, path, place)
            if text.strip():
                yield place, _object(_parse(text, path, place), path, place)


def _json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = _decoded(path.read_bytes(), path)
    if not text.lstrip().startswith("["):
        yield from _json_lines(path)
        return
    for number, value in enumerate(_parse(text, path, None), start=1):
        yield f"row {number}", _object(value, path, f"row {number}")


def _decoded(data: bytes, path: Path, place: str | None = None) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8: {error.reason} at byte {error.start}", file=path, field=place) from None


def _parse(text: str, path: Path, place: str | None) -> Any:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise InputError(f"invalid JSON: {error}", file=path, field=place) from None


def _object(value: Any, path: Path, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError("not a JSON object", file=path, field=place, found=value, expected=_SCHEMA)
    return value


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = _decoded(path.read_bytes(), path)
    before = csv.field_size_limit(_MAX_FIELD)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise InputError(f"invalid CSV: {error}", file=path) from None
    finally:
        csv.field_size_limit(before)
    header = rows[0] if rows else []
    for number, row in enumerate(rows[1:], start=1):
        if row and len(row) != len(header):
            raise InputError(
                "wrong number of fields", file=path, field=f"row {number}", found=len(row), expected=str(len(header))
            )
        if row:
            yield f"row {number}", dict(zip(header, row, strict=True))


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", record
    except pyarrow.ArrowException as error:
        raise InputError(f"not a readable Parquet file: {error}", file=path) from None


_READERS = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}


def _any(names: Sequence[str] | set[str]) -> str:
    return "one of " + ", ".join(sorted(names) if isinstance(names, set) else names)


def _beside(path: Path, names: Sequence[str]) -> list[str]:
    return [str(path.parent / name) for name in names]
