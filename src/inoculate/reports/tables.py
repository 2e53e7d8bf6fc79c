"""Tables as values, and the records of a store as rows for terminals and programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from inoculate.core.records import COLUMNS, Record
from inoculate.reports.wording import number, visible

_TERMINAL = (
    *("recipe", "stage", "base", "defense", "defense_seed", "threat_model", "guard", "adapter_mode", "attack"),
    *("attack_seed", "trial", "poison_ratio", "learning_rate"),
    *("step", "metric", "layer", "judge", "split", "value", "n", "status"),
)
_FORMULA = ("=", "+", "-", "@", "\t")
_ALWAYS = {"defense", "step", "metric", "value", "n"}
_NUMERIC = {"step", "value", "n", "poison_ratio", "learning_rate"}


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table."""

    text: str
    detail: str = ""
    """A second, quieter line: the interval, or what the value rests on."""
    value: Any = None
    """The value itself, for programs and tests."""


@dataclass(frozen=True)
class Column:
    """A column's head."""

    title: str
    numeric: bool = True
    wide: bool = False
    """Its cells are sentences, which may break."""


@dataclass(frozen=True)
class Table:
    """A table with its caption. The first cell of each row is its head."""

    caption: str
    columns: Sequence[Column]
    rows: list[list[Cell]] = field(default_factory=list)
    note: str = ""


def records_table(records: Sequence[Record], format: Literal["table", "csv", "json"] = "table") -> str:
    """The rows as a table to read, as CSV (parameters as JSON text) or as a JSON array; all end with a line break."""
    if format == "json":
        return _sound(json.dumps([asdict(record) for record in records], indent=1, ensure_ascii=False)) + "\n"
    if format == "csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_csv(getattr(record, name)) for name in COLUMNS] for record in records)
        return _sound(out.getvalue())
    return _for_terminal(records)


def _csv(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula is quoted as spreadsheets do it."""
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    if not isinstance(value, str):
        return value
    value = value.replace("\r", "␍")  # which the csv module leaves bare
    return f"'{value}" if value.startswith(_FORMULA) else value


def _sound(text: str) -> str:
    """Lone surrogates, which no output takes, as the escapes that JSON has for them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _for_terminal(records: Sequence[Record]) -> str:
    """Columns in which nothing varies are left out and named below, so that a row fits a line."""
    from rich.cells import cell_len

    rows = [[_terminal(record, name) for name in _TERMINAL] for record in records]
    columns = list(zip(_TERMINAL, zip(*rows, strict=True), strict=True)) if rows else []
    shown = [(name, cells) for name, cells in columns if name in _ALWAYS or len(set(cells)) > 1]
    same = [f"{name} = {cells[0]}" for name, cells in columns if (name, cells) not in shown and cells[0]]
    # Laid out here, not by rich's table, which takes a millisecond for every row.
    padded = []
    for name, cells in shown:
        width = max(cell_len(text) for text in (name, *cells))
        blanks = [(text, " " * (width - cell_len(text))) for text in (name, *cells)]
        padded.append([blank + text if name in _NUMERIC else text + blank for text, blank in blanks])
    lines = ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]
    return "\n".join([*lines, *(["In all rows: " + ", ".join(same)] if same else [])]) + "\n"


def _terminal(record: Record, name: str) -> str:
    value = record.attack_params.get(name) if name == "learning_rate" else getattr(record, name)
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else visible(str(value))
