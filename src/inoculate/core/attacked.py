"""Whether weights were made by an attack, by what their folder says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from inoculate.core.records import Record

_ATTACKS = ("finetune", "search")
"""Kinds of stages that fine-tune what an alignment has made."""


def attack_on(about: Mapping[str, Any], rows: Iterable[Record]) -> str | None:
    """How weights that count as attacked were fine-tuned, to be said behind these words; None for others.

    Fine-tuned weights do if harmful rows were among the user's, or if a judge found that they broke on the way.
    What was trained on innocent rows and did not break is a user's model. What cannot be told counts as an attack.

    Args:
        about: stage.json.
        rows: records.jsonl of the same folder.
    """
    if about.get("kind") not in _ATTACKS:
        return None
    value = about.get("value")
    attack = value.get("attack") if isinstance(value, Mapping) else None
    ratio = attack.get("poison_ratio") if isinstance(attack, Mapping) else None
    if not isinstance(ratio, int | float) or about["kind"] == "search":
        return "by an attack"
    if ratio:
        return f"by an attack, a share of {ratio:g} of its data harmful"
    broke = [row for row in rows if row.metric == "steps_to_break" and row.status == "ok" and row.value]
    if not broke:
        return None
    first = min(broke, key=lambda row: row.value or 0.0)
    return f"on data without a harmful row, and were broken by step {first.value or 0:g} (judge: {first.judge})"
