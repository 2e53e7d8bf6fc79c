"""A file of the user's own: a column of texts, and one for each task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from inoculate.core.errors import InputError
from inoculate.core.hashing import file_sha256
from inoculate.core.paths import local_path
from inoculate.core.seeds import derive
from inoculate.data import files
from inoculate.data.attributes import VERSION, Item, Items, Roles, distinct, key_of
from inoculate.data.splits import SPLITS, Split
from inoculate.data.worlds import Labeled, Task

_SHARES: dict[Split, int] = {"train": 5, "attack": 2, "validation": 1, "heldout": 2}
_FEWEST = 40


class LabeledFile(Roles):
    """A local file (JSON lines, JSON, CSV or Parquet): a column of texts, and one for each task.

    A label is any text, number or truth value; classes are numbered in the order of their sorted texts, over the whole
    file. A `split` column says where a row belongs (train, attack, validation, heldout). Without one, a digest of the
    text does: about 50, 20, 10 and 20 % of the rows, and a text found twice is used once.
    """

    name: Literal["file"] = "file"
    path: str
    text: str = "text"
    desired: str
    restricted: str
    unrelated: str

    def rows(self, split: Split) -> Labeled:
        """Texts of one split.

        Raises:
            InputError: as `check`.
        """
        return self.labeled(self._read()[0][split])

    def classes(self, task: Task) -> int:
        """Distinct labels of the task's column in the whole file."""
        return len(self._read()[1][self.roles[task]])

    def fingerprint(self) -> str:
        """The file's SHA-256."""
        return f"file-{VERSION}-{file_sha256(local_path(self.path, 'path'))}"

    def check(self) -> None:
        """Read the whole file.

        Raises:
            InputError: for a file that cannot be read, a missing column, a row without label, a column with one label
                only, fewer than 40 rows, a split without rows, or a text that stands in two splits.
        """
        self._read()

    def _read(self) -> tuple[Items, dict[str, list[str]]]:
        path = local_path(self.path, "path")
        if not path.is_file():
            list(files.records(path))  # says what is wrong
        return _labeled_file(path, self.text, tuple(self.roles.values()), file_sha256(path))


@lru_cache(maxsize=4)
def _labeled_file(path: Path, text_column: str, columns: tuple[str, ...], _: str) -> tuple[Items, dict[str, list[str]]]:
    """The rows by split, and the labels of each column by class number; read again if the file's SHA-256 changes."""
    rows: list[tuple[str, dict[str, str], Split]] = []
    found = list(files.records(path))
    official = any("split" in record for _, record in found)
    for place, record in found:
        text = _text_of(record, text_column, path, place)
        labels = {column: _label_of(record, column, path, place) for column in columns}
        rows.append((text, labels, _split_of(record, place, path) if official else _split_by_digest(text)))
    if len(rows) < _FEWEST:
        raise InputError("too few rows", file=path, found=len(rows), expected=f"{_FEWEST} or more")
    _refuse_leaks(rows, path)
    names: dict[str, list[str]] = {}
    for column in columns:
        names[column] = sorted({labels[column] for _, labels, _ in rows})
        if len(names[column]) < 2:
            raise InputError(
                "every row has the same label", file=path, field=column, found=names[column][0], expected="two classes"
            )
    parts: Items = {split: [] for split in SPLITS}
    for text, labels, split in distinct(rows, of=lambda row: row[0]):
        parts[split].append(Item(text, {column: names[column].index(label) for column, label in labels.items()}))
    empty = [split for split, items in parts.items() if not items]
    if empty:
        raise InputError("no row of this split", file=path, field="split", found=empty[0], expected="rows of all four")
    return parts, names


def _refuse_leaks(rows: Iterable[tuple[str, Any, Split]], path: Path) -> None:
    first: dict[str, Split] = {}
    for text, _, split in rows:
        if first.setdefault(key_of(text), split) != split:
            raise InputError(
                f"a text stands in two splits, {first[key_of(text)]} and {split}",
                file=path,
                field="split",
                found=text,
                expected="every text in one split",
            )


def _text_of(record: Mapping[str, Any], column: str, path: Path, place: str) -> str:
    text = files.text_of(record, column, path, place)
    if not text.strip():
        raise InputError("an empty text", file=path, field=f"{place}, {column}")
    return text


def _label_of(record: Mapping[str, Any], column: str, path: Path, place: str) -> str:
    if column not in record:
        known = [str(name) for name in record]
        raise InputError(
            "no such column of labels", file=path, field=place, found=column, expected=", ".join(known), known=known
        )
    value = record[column]
    if value is None or value == "" or isinstance(value, (float, list, dict)):
        raise InputError(
            "not a label",
            file=path,
            field=f"{place}, {column}",
            found=value,
            expected="text, an integer or true, false",
        )
    return str(value)


def _split_of(record: Mapping[str, Any], place: str, path: Path) -> Split:
    named = record.get("split")
    for split in SPLITS:
        if named == split:
            return split
    raise InputError(
        "no such split", file=path, field=f"{place}, split", found=named, expected=", ".join(SPLITS), known=SPLITS
    )


def _split_by_digest(text: str) -> Split:
    ladder: list[Split] = [split for split, tenths in _SHARES.items() for _ in range(tenths)]
    return ladder[derive(0, "file", key_of(text)) % len(ladder)]
