"""Tables as values, and the records of a store as rows for terminals and programs."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from inoculate.core.records import COLUMNS, Record
from inoculate.reports.wording import number, visible

_TERMINAL = (
    *("recipe", "stage", "base", "defense", "defense_seed", "threat_model", "adapter_mode", "attack", "attack_seed"),
    *("trial", "poison_ratio", "learning_rate", "step", "metric", "judge", "split", "value", "n", "status"),
)
_ALWAYS = {"defense", "step", "metric", "value", "n"}


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
        return json.dumps([asdict(record) for record in records], indent=1, ensure_ascii=False) + "\n"
    if format == "csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_csv(getattr(record, name)) for name in COLUMNS] for record in records)
        return out.getvalue()
    return _for_terminal(records)


def _csv(value: Any) -> Any:
    return json.dumps(value, sort_keys=True, ensure_ascii=False) if isinstance(value, dict) else value


def _for_terminal(records: Sequence[Record]) -> str:
    """Columns in which nothing varies are left out and named below, so that a row fits a line."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    rows = [[_terminal(record, name) for name in _TERMINAL] for record in records]
    varied = [len(set(column)) > 1 for column in zip(*rows, strict=True)] or [True] * len(_TERMINAL)
    keep = [i for i, name in enumerate(_TERMINAL) if varied[i] or name in _ALWAYS]
    same = [f"{name} = {rows[0][i]}" for i, name in enumerate(_TERMINAL) if rows and i not in keep and rows[0][i] != ""]
    table = RichTable(box=None, pad_edge=False, header_style="bold")
    for i in keep:
        table.add_column(_TERMINAL[i], justify="right" if _TERMINAL[i] in ("step", "value", "n") else "left")
    for row in rows:
        table.add_row(*(Text(row[i]) for i in keep))
    out = io.StringIO()
    widest = sum(2 + max(len(_TERMINAL[i]), *(len(row[i]) for row in rows)) for i in keep) if rows else 80
    # Piped output is not cut to a terminal that is not there.
    console = Console(file=out, width=max(widest, shutil.get_terminal_size().columns), no_color=True)
    console.print(table)
    if same:
        console.print(Text("In all rows: " + ", ".join(same)))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _terminal(record: Record, name: str) -> str:
    value = record.attack_params.get(name) if name == "learning_rate" else getattr(record, name)
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else visible(str(value))
