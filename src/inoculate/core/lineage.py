"""What made a folder of weights, and the folders before it, by what they say of themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inoculate.core.records import Record, read_records

_ATTACKS = ("finetune", "search")
"""Kinds of stages that fine-tune what an alignment has made."""


def lineage(folder: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The folder and its stage.json, then those of the local folder that it started from, and so on.

    Ends where nothing is said, or what is said cannot be read: at a hub's model, or at somebody else's folder.
    """
    seen: set[Path] = set()
    at: Path | None = folder
    while at is not None and at.resolve() not in seen:
        seen.add(at.resolve())
        try:
            about = json.loads((at / "stage.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if not isinstance(about, dict):
            return
        yield at, about
        address = start_of(about).get("name_or_path")
        at = Path(address) if isinstance(address, str) and address else None


def start_of(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the model that a stage started from; those of its base, if the same experiment aligned it."""
    here = mapping(about.get("value"))
    for key in ("model", "base"):
        here = mapping(here.get(key)) or here
    return here


def attack_on(folder: Path) -> str | None:
    """How weights that count as attacked were fine-tuned, to be said behind these words; None for others.

    Weights do if they started from a security vector, if harmful rows were among those that they, or what they started
    from, were fine-tuned on, or if a judge found that they broke on the way. A user's model is what was trained on rows
    that are said to be innocent, and was not found broken; if nobody measured it, that is taken at its word. An attack
    that does not say what its rows were counts.
    """
    for at, about in lineage(folder):
        if at != folder and about.get("kind") == "vector":
            return "from a security vector"
        if (why := _attacked(at, about)) is not None:
            return why
    return None


def _attacked(folder: Path, about: Mapping[str, Any]) -> str | None:
    if about.get("kind") not in _ATTACKS:
        return None
    ratio = mapping(mapping(about.get("value")).get("attack")).get("poison_ratio")
    if not isinstance(ratio, int | float) or about["kind"] == "search":
        return "by an attack"
    if ratio:
        return f"by an attack, a share of {ratio:g} of its data harmful"
    file = folder / "records.jsonl"
    broke = [row for row in read_records(file) if _is_break(row)] if file.exists() else []
    if not broke:
        return None
    first = min(broke, key=lambda row: row.value or 0.0)
    return f"on data without a harmful row, and were broken by step {first.value or 0:g} (judge: {first.judge})"


def _is_break(row: Record) -> bool:
    """One that the training brought about: at step 0 the model did already what is restricted."""
    return row.metric == "steps_to_break" and row.status == "ok" and bool(row.value)


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one: what stands in a file may be anything."""
    return value if isinstance(value, dict) else {}
