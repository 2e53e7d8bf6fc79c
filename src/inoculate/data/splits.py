"""Rows and the four splits of every source: `train` is the defender's, `attack` and `validation` are the attacker's,
`heldout` is for reporting. No prompt stands in two of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from inoculate.core.seeds import numpy_rng
from inoculate.core.types import Example

Split = Literal["train", "attack", "validation", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "attack", "validation", "heldout")

# Small splits choose first, so that a prompt found twice shrinks the largest one.
_CHOOSING: tuple[Split, ...] = ("heldout", "validation", "attack", "train")


class Row(NamedTuple):
    """An example, and the source's own refusal of its prompt where there is one."""

    example: Example
    refusal: str | None = None


Parts = dict[Split, list[Row]]


def disjoint(parts: Mapping[Split, Sequence[Row]]) -> Parts:
    """Every prompt once: in the first split that has it, of `heldout`, `validation`, `attack`, `train`; order kept.

    Prompts that differ in letter case or white space only are the same.
    """
    seen: set[str] = set()
    kept: Parts = {}
    for split in _CHOOSING:
        kept[split] = _unseen(parts.get(split, ()), seen)
    return kept


def cut(rows: Iterable[Row], name: str, *, heldout: int, validation: int, attack: int) -> Parts:
    """Distinct prompts in an order that `name` fixes, cut into splits of the given sizes; `train` gets the rest."""
    distinct = _unseen(rows, set())
    order = numpy_rng(0, name).permutation(len(distinct)).tolist()
    shuffled = [distinct[i] for i in order]
    a, b, c = heldout, heldout + validation, heldout + validation + attack
    return {"heldout": shuffled[:a], "validation": shuffled[a:b], "attack": shuffled[b:c], "train": shuffled[c:]}


def cut_by_share(rows: Sequence[Row], name: str) -> Parts:
    """`cut` with a half for `train`, a fifth each for `attack` and `heldout`, a tenth for `validation`."""
    n = len(_unseen(rows, set()))
    return cut(rows, name, heldout=n // 5, validation=n // 10, attack=n // 5)


def _unseen(rows: Iterable[Row], seen: set[str]) -> list[Row]:
    """The rows whose prompt is not in `seen`, which grows by them."""
    kept = []
    for row in rows:
        key = "\n".join(" ".join(text.lower().split()) for _, text in row.example.turns)
        if key not in seen:
            seen.add(key)
            kept.append(row)
    return kept
