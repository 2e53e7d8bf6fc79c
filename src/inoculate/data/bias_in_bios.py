"""Bias in Bios, of the hub or of local Parquet files: profession and gender, pronouns neutralized."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any, Literal

from inoculate.core.errors import InputError
from inoculate.core.hashing import tree_sha256
from inoculate.core.paths import local_path
from inoculate.core.types import Value
from inoculate.data import files, hub
from inoculate.data.attributes import VERSION, cut, distinct, shuffled
from inoculate.data.splits import Split
from inoculate.data.worlds import Labeled, Task

_BIOS_REPO, _BIOS_REVISION = "LabHC/bias_in_bios", "052f01de644dba841176e0449528b41f27d94a61"
_BIOS_SPLITS = ("train", "dev", "test")
_BIOS_PROFESSIONS = 28
_NEUTRAL = {"she": "they", "he": "they", "her": "their", "him": "their", "his": "their"}
_PRONOUN = re.compile(r"(?<!\S)(she|he|her|him|his)(?=[.,]?(?!\S))", re.IGNORECASE)


class BiasInBios(Value):
    """Biographies from the web (De-Artega et al., FAT* 2019, as shared by Ravfogel et al., ACL 2020).

    Desired: profession (28); restricted: gender (2; men, women). Unrelated: whether the text is longer than the median
    text to train on. It is ours: neither label is made from it, and no defense censors it.

    `neutralize` replaces pronouns as published for MLAC (Henderson et al., arXiv:2211.14946): she, he → they; her,
    him, his → their, in lower and upper case, also with a period or comma behind. The published split: shuffled with
    seed 0, 85 % to train, 5 % halved into the attacker's pool and the attacker's validation, 10 % held out. Ours: a
    text found twice is used once; the rows of all three official parts are one pool; another generator shuffles.

    `folder` is read in place of the hub: its Parquet files in order of their names, with columns `hard_text`,
    `profession` and `gender`.
    """

    name: Literal["bias-in-bios"] = "bias-in-bios"
    folder: str | None = None
    neutralize: bool = True

    def rows(self, split: Split) -> Labeled:
        """Texts of one split.

        Raises:
            InputError: if the hub or the folder cannot be read, or a row is not of the schema.
        """
        import numpy as np

        parts = _bios(self.folder, self.neutralize)
        middle = median(len(text.split()) for text, _, _ in parts["train"])
        texts, professions, genders = zip(*parts[split], strict=True)
        columns = (professions, genders, [len(text.split()) > middle for text in texts])
        labels = (np.array(column, dtype=np.int64) for column in columns)
        return Labeled(list(texts), dict(zip(("desired", "restricted", "unrelated"), labels, strict=True)))

    def classes(self, task: Task) -> int:
        """28 professions; two of the others."""
        return _BIOS_PROFESSIONS if task == "desired" else 2

    def fingerprint(self) -> str:
        """Version of the reading, and the repository's revision or the SHA-256 of the folder."""
        place = tree_sha256(local_path(self.folder, "folder")) if self.folder else f"{_BIOS_REPO}@{_BIOS_REVISION}"
        return f"bias-in-bios-{VERSION}-{place}"

    def check(self) -> None:
        """Look at the first row of each local file.

        Raises:
            InputError: naming what is missing or wrong.
        """
        for path in _parquet_files(self.folder) if self.folder else ():
            for record in hub.local_records(path, limit=1):
                _bio(record, path, "row 1", self.neutralize)


def neutralized(text: str) -> str:
    """The text with "they" for she and he, "their" for her, him and his, where white space bounds the word."""

    def neutral(found: re.Match[str]) -> str:
        word = _NEUTRAL[found[0].lower()]
        return word.capitalize() if found[0][0].isupper() else word

    return _PRONOUN.sub(neutral, text)


@lru_cache(maxsize=4)
def _bios(folder: str | None, neutralize: bool) -> dict[Split, list[tuple[str, int, int]]]:
    rows = []
    for source, records in _bio_records(folder):
        rows += [_bio(record, source, f"row {n}", neutralize) for n, record in enumerate(records, start=1)]
    rows = shuffled(list(distinct(rows, of=lambda row: row[0])), "bias-in-bios")
    n = len(rows)
    sizes: dict[Split, int] = {"heldout": n // 10, "validation": n // 40, "attack": n // 20 - n // 40}
    if not sizes["validation"]:
        raise InputError("too few rows", file=folder or _BIOS_REPO, found=n, expected="40 distinct texts or more")
    return cut(rows, sizes)


def _bio_records(folder: str | None) -> Iterator[tuple[object, Iterable[Mapping[str, Any]]]]:
    if folder:
        for path in _parquet_files(folder):
            yield path, hub.local_records(path)
        return
    for split in _BIOS_SPLITS:
        yield _BIOS_REPO, hub.download(_BIOS_REPO, split, revision=_BIOS_REVISION, config=None)


def _parquet_files(folder: str) -> list[Path]:
    found = sorted(local_path(folder, "folder").rglob("*.parquet"))
    if not found:
        raise InputError("no Parquet file in this folder", field="folder", found=folder, expected="*.parquet")
    return found


def _bio(record: Mapping[str, Any], file: object, place: str, neutralize: bool) -> tuple[str, int, int]:
    text = files.text_of(record, "hard_text", file, place)
    numbers = []
    for column, classes in (("profession", _BIOS_PROFESSIONS), ("gender", 2)):
        value = record.get(column)
        if not isinstance(value, int) or not 0 <= value < classes:
            expected = f"0 … {classes - 1}"
            raise InputError("no such class", file=file, field=f"{place}, {column}", found=value, expected=expected)
        numbers.append(value)
    return neutralized(text) if neutralize else text, numbers[0], numbers[1]
