"""What worlds over real texts share: attributes that may take any role, and cuts without repeats.

A text stands in one split only, in one row of it; texts that differ in letter case or white space only are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import model_validator

from inoculate.core.seeds import numpy_rng
from inoculate.core.types import Value
from inoculate.data.splits import Split
from inoculate.data.worlds import TASKS, Labeled, Task

VERSION = "1"
"""Part of the fingerprints: raised when a text, a label or a cut changes."""


class Item(NamedTuple):
    """A text and the class number of each attribute that is known of it."""

    text: str
    values: Mapping[str, int]


Items = dict[Split, list[Item]]
RowT = TypeVar("RowT")


class Roles(Value):
    """A world whose tasks are attributes by name: no two of them the same."""

    @property
    def roles(self) -> dict[Task, str]:
        """Task → attribute."""
        return {task: getattr(self, task) for task in TASKS}

    @model_validator(mode="after")
    def _differ(self) -> Roles:
        if len(set(self.roles.values())) < len(TASKS):
            given = ", ".join(f"{task} = {name}" for task, name in self.roles.items())
            raise ValueError(f"expected three different attributes, found {given}")
        return self

    def labeled(self, items: Sequence[Item]) -> Labeled:
        import numpy as np

        labels: dict[Task, np.ndarray] = {
            task: np.array([item.values[name] for item in items], dtype=np.int64) for task, name in self.roles.items()
        }
        return Labeled([item.text for item in items], labels)


def key_of(text: str) -> str:
    return " ".join(text.lower().split())


def distinct(rows: Iterable[RowT], of: Any) -> Iterator[RowT]:
    """The rows whose text, which `of` gives, was not in one before."""
    seen: set[str] = set()
    for row in rows:
        key = key_of(of(row))
        if key not in seen:
            seen.add(key)
            yield row


def shuffled(rows: Sequence[RowT], name: str) -> list[RowT]:
    """In an order that `name` fixes."""
    return [rows[i] for i in numpy_rng(0, name).permutation(len(rows)).tolist()]


def cut(rows: Sequence[RowT], sizes: Mapping[Split, int]) -> dict[Split, list[RowT]]:
    """Consecutive parts of the given sizes; `train` gets the rest."""
    parts: dict[Split, list[RowT]] = {}
    start = 0
    for split, size in sizes.items():
        parts[split] = list(rows[start : start + size])
        start += size
    parts["train"] = list(rows[start:])
    return parts
