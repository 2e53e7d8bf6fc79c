"""That what is learned from and what is measured on are apart."""

from __future__ import annotations

from typing import Any, Literal

from inoculate.core.errors import InputError
from inoculate.core.types import Value
from inoculate.data import sources
from inoculate.data.mix import Part
from inoculate.experiments.align import Align
from inoculate.experiments.model import Model

_SAID = {
    "search": (
        "of the attacker's prompts are among those that are reported on",
        "a file has no splits, so the attacker's own are another file (--validation-restricted, --validation-ordinary)",
    ),
    "training": (
        "of the prompts that are trained on are among those that are measured on",
        "a file has no splits, so what is measured on is another file",
    ),
}


def learned_by(model: Model) -> tuple[Part, ...]:
    """What an alignment of this experiment learns from; of models that exist nobody knows."""
    return tuple(part for parts in model.roles.values() for part in parts) if isinstance(model, Align) else ()


class Apart(Value):
    """Of local files, none to learn from or to choose on holds a prompt to report on.

    All other sources are cut into splits that share none.
    """

    seen: tuple[Part, ...]
    heldout: tuple[Part, ...]
    by: Literal["search", "training"] = "training"
    """Who has seen them: it decides what a user is told to do."""

    def check(self) -> None:
        """Compare the prompts, turn by turn.

        Raises:
            InputError: naming a file that holds a held-out prompt.
        """
        kept: dict[Any, str] = {}
        for part in filter(_is_file, self.heldout):
            kept |= {example.turns: part.source for example in part.load(seed=0)}
        for part in filter(_is_file, self.seen if kept else ()):
            shared = [example.turns for example in part.load(seed=0) if example.turns in kept]
            if shared:
                what, why = _SAID[self.by]
                raise InputError(
                    f"{len(shared)} {what}",
                    file=part.source,
                    field="validation" if self.by == "search" else "evaluate",
                    expected=f"prompts that are not in {kept[shared[0]]}: {why}",
                )


def _is_file(part: Part) -> bool:
    return sources.source_of(part.source).kind == "file"
