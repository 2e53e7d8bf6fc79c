"""Records: one measured value with its provenance, as one row of JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from inoculate.core.errors import InputError

STATUSES = ("ok", "censored", "pruned", "diverged", "failed")


@dataclass(frozen=True, slots=True)
class Record:
    """One measured value.

    Rates are in [0, 1]. `value` is None exactly when nothing could be measured (`diverged`, `failed`).
    `censored` marks a cost that was not reached: `value` is then the budget at which the search stopped. `pruned` marks
    a trial that the search gave up, with what it had reached.
    """

    metric: str
    value: float | None
    n: int | None = None
    status: str = "ok"
    recipe: str = ""
    stage: str = ""
    """`<kind>-<hash>` of the stage that measured it."""
    base: str = ""
    """Name of the starting model."""
    base_seed: int | None = None
    base_params: dict[str, Any] = field(default_factory=dict)
    """What else made it, where its name does not say: world, shape and training of a few-shot study's body."""
    defense: str = ""
    defense_params: dict[str, Any] = field(default_factory=dict)
    defense_seed: int | None = None
    threat_model: str = "open_weights"
    adapter_mode: str = "full"
    """`full`, `continue` (the attack goes on with the alignment's LoRA) or `merge` (merged, then a fresh one)."""
    guard: str = ""
    """What the provider did inside the training: `security_vector`, `lisa`, or nothing."""
    guard_params: dict[str, Any] = field(default_factory=dict)
    attack: str = ""
    attack_params: dict[str, Any] = field(default_factory=dict)
    attack_seed: int | None = None
    trial: int | None = None
    step: int | None = None
    """Attack steps made before the measurement."""
    harmful_samples: int | None = None
    """Harmful rows in the attacker's data."""
    poison_ratio: float | None = None
    judge: str = ""
    split: str = ""
    layer: str = ""
    """Of a gradient: `all`, or the layer it belongs to."""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is none of {STATUSES}")
        if self.value is None and self.status in ("ok", "censored", "pruned"):
            raise ValueError(f"{self.metric}: status {self.status!r} needs a value")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"{self.metric}: a value must be finite; a diverged run is a row without one")


COLUMNS = tuple(f.name for f in fields(Record))


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write rows as JSON lines, keys sorted, so that equal records are equal bytes."""
    with path.open("w", encoding="utf-8") as out:
        for record in records:
            row = {name: getattr(record, name) for name in COLUMNS}  # `asdict` would copy every dict first
            out.write(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n")


def read_records(path: Path) -> Iterator[Record]:
    """Read rows back.

    Raises:
        InputError: naming the file and line of a row that is torn or has unknown columns.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield Record(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise InputError(f"not a record: {error}", file=f"{path}:{number}") from None
