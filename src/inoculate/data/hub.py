"""Data sets of the Hugging Face hub: which columns make a prompt and an answer, and which rows make a split.

Nothing is executed from a repository. The same rows may come from local files of the same schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any

from inoculate.core.errors import InputError
from inoculate.core.types import Example, Value
from inoculate.data import files
from inoculate.data.splits import Row


class Fields(Value):
    """How a row of a data set becomes an example."""

    prompt: str
    """Template over columns, e.g. `"{instruction}\\n\\n{input}"`; white space at its ends is dropped."""
    completion: str
    """Column of the answer: text, or a class number when `classes` is given."""
    classes: tuple[str, ...] = ()
    """The answer's text by class number."""
    refusal: str | None = None
    """Column of the source's own refusal."""
    only: tuple[str, bool] | None = None
    """Rows whose column holds this truth value are used, the others passed over."""
    replace: tuple[str, str] | None = None
    """A mark in the answer, and what to write for it."""

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """The columns that the prompt is made of."""
        return tuple(name for _, name, _, _ in Formatter().parse(self.prompt) if name)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read."""
        refusal = (self.refusal,) if self.refusal else ()
        return (*self.prompt_columns, self.completion, *refusal, *(self.only or ())[:1])


class Part(Value):
    """Rows `start` … `stop` − 1 of an official split, counted from 0 over the rows that are used."""

    split: str
    start: int = 0
    stop: int | None = None


class Plan(Value):
    """Which rows make which split. `heldout` may be left to another source."""

    train: Part
    attack: Part
    validation: Part
    heldout: Part | None = None


def examples_from(records: Iterable[Mapping[str, Any]], fields: Fields | None, name: object = None) -> list[Row]:
    """Rows of a data set as examples; without `fields`, of the plain schema that local files have.

    Args:
        records: any iterable of mappings: a `datasets.Dataset`, a list of dicts.
        name: the data set or file, for error messages.

    Raises:
        InputError: naming the row and column of a mistake.
    """
    rows = []
    for number, record in enumerate(records, start=1):
        place = f"row {number}"
        if fields is None:
            rows.append(files.row_of(record, name, place))
            continue
        _require(record, fields, name, place)
        if fields.only is None or _truth(record, fields.only[0], name, place) == fields.only[1]:
            rows.append(_row(record, fields, name, place))
    return rows


def rows_of_part(rows: list[Row], part: Part, name: object) -> list[Row]:
    """The rows of one part.

    Raises:
        InputError: if there is none.
    """
    chosen = rows[part.start : part.stop]
    if not chosen:
        raise InputError(
            "too few rows", file=name, field=part.split, found=len(rows), expected=f"more than {part.start}"
        )
    return chosen


@lru_cache(maxsize=8)
def download(repo: str, split: str, *, revision: str | None, config: str | None) -> Iterable[Mapping[str, Any]]:
    """An official split of a data set, through the hub's own client and its cache; asked for once per process.

    Raises:
        InputError: if the hub, the repository or the split cannot be reached.
    """
    import datasets
    import datasets.exceptions
    import httpx

    try:
        return datasets.load_dataset(repo, config, split=split, revision=revision)  # pyright: ignore[reportReturnType]
    except (OSError, ValueError, httpx.HTTPError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"the data set could not be loaded from the hub: {_first_line(error)}",
            file=repo,
            field=split,
            expected="a connection to the hub, or local files given as `name=folder`",
        ) from None


def local_file(folder: Path, split: str) -> Path:
    """The file in `folder` that stands for an official split.

    Raises:
        InputError: if there is none, naming what was looked for.
    """
    wanted = [folder / f"{split}{suffix}" for suffix in files.SUFFIXES]
    for path in wanted:
        if path.is_file():
            return path
    raise InputError(
        "no file for this split",
        file=folder,
        field=split,
        found=", ".join(sorted(path.name for path in folder.glob("*"))) or "an empty or missing folder",
        expected="one of " + ", ".join(path.name for path in wanted),
    )


def local_records(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """The first `limit` records of a local stand-in, or all."""
    return [record for _, record in islice(files.records(path), limit)]


def _require(record: Mapping[str, Any], fields: Fields, name: object, place: str) -> None:
    missing = [column for column in fields.columns if column not in record]
    if missing:
        raise InputError(
            f"column {missing[0]!r} is missing",
            file=name,
            field=place,
            found=", ".join(map(str, record)),
            expected="columns " + ", ".join(fields.columns),
        )


def _row(record: Mapping[str, Any], fields: Fields, name: object, place: str) -> Row:
    texts = {column: files.text_of(record, column, name, place) for column in fields.prompt_columns}
    prompt = fields.prompt.format(**texts).strip()
    if fields.classes:
        completion = _class(record[fields.completion], fields, name, place)
    else:
        completion = files.text_of(record, fields.completion, name, place).strip()
    if fields.replace:
        completion = completion.replace(*fields.replace)
    refusal = files.text_of(record, fields.refusal, name, place).strip() if fields.refusal else None
    return Row(Example.of(prompt, completion), refusal)


def _class(value: Any, fields: Fields, name: object, place: str) -> str:
    text = str(value)
    if text in fields.classes:
        return text
    if text.isdecimal() and int(text) < len(fields.classes):
        return fields.classes[int(text)]
    raise InputError(
        "no such class",
        file=name,
        field=f"{place}, {fields.completion}",
        found=value,
        expected=f"0 … {len(fields.classes) - 1} or one of {', '.join(fields.classes)}",
    )


def _truth(record: Mapping[str, Any], column: str, name: object, place: str) -> bool:
    text = str(record[column]).lower()
    if text not in ("true", "false"):
        raise InputError(
            "wrong type", file=name, field=f"{place}, {column}", found=record[column], expected="true or false"
        )
    return text == "true"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
