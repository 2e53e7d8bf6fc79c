"""That what is learned from and what is measured on are apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from inoculate.attacks.guards import Guard, MountedVector
from inoculate.core.errors import InputError
from inoculate.core.lineage import lineage, mapping
from inoculate.core.types import Value
from inoculate.data import sources
from inoculate.data.mix import Part
from inoculate.experiments.align import Align
from inoculate.experiments.base import Pretrained
from inoculate.experiments.model import Model
from inoculate.experiments.vector import Vector

_WHERE = "a file without a `split` column is one pool, so"
_SAID = {
    "search": (
        "of the attacker's prompts are among those that are reported on",
        f"{_WHERE} the attacker's own are another file (--validation-restricted, --validation-ordinary)",
    ),
    "training": (
        "of the prompts in what is trained on are among those that are measured on",
        f"{_WHERE} what is measured on is another file",
    ),
}


class Apart(Value):
    """Of local files, none to learn from or to choose on holds a prompt to report on.

    Files are compared whole, whichever of their rows are drawn. All other sources are cut into splits that share none.
    """

    seen: tuple[Part, ...]
    heldout: tuple[Part, ...]
    by: Literal["search", "training"] = "training"
    """Who has seen them: it decides what a user is told to do."""

    @classmethod
    def of(cls, seen: Iterable[Part], heldout: Iterable[Part], by: Literal["search", "training"] = "training") -> Apart:
        """The same for all who draw other rows from the same files, so that it is checked once."""
        return cls(seen=_files(seen), heldout=_files(heldout), by=by)

    def check(self) -> None:
        """Compare the prompts, turn by turn.

        Raises:
            InputError: naming a file that holds a held-out prompt, and the prompt.
        """
        kept: dict[Any, str] = {}
        for part in self.heldout if self.seen else ():
            kept |= {example.turns: part.source for example in part.load(seed=0)}
        for part in self.seen if kept else ():
            shared = [example for example in part.load(seed=0) if example.turns in kept]
            if shared:
                what, why = _SAID[self.by]
                raise InputError(
                    f"{len(shared)} {what}",
                    file=part.source,
                    field="validation" if self.by == "search" else "evaluate",
                    found=shared[0].prompt,
                    expected=f"prompts that are not in {kept[shared[0].turns]}: {why}",
                )


def learned_by(model: Model, vector: Vector | None = None, guard: Guard | None = None) -> list[Part]:
    """What a model and its guard's vector have learned from, as far as it is known here: of an alignment or a vector of
    this experiment all, of a folder that this package wrote what it says and where that still stands.
    """
    found = _of(vector.vector.data.roles) if vector is not None else []
    if isinstance(guard, MountedVector) and guard.folder is not None:
        found += _told_by(Path(guard.folder))
    if isinstance(model, Align):
        base = learned_by(model.base) if isinstance(model.base, Pretrained) else []
        return [*found, *_of(model.roles), *base]
    return [*found, *_told_by(Path(model.name_or_path))]


def _told_by(folder: Path) -> list[Part]:
    """What a folder's own account, and those of what it was made from, name that still stands."""
    told = (row for _, about in lineage(folder) for row in _told(mapping(about.get("value"))))
    return [part for part in map(_part, told) if part is not None]


def _told(made: Mapping[str, Any]) -> Iterable[Any]:
    """The data that a stage's settings name: of an alignment, whether its own or one before; of a fine-tuning."""
    for data in (mapping(of.get("data")) for of in (made, mapping(made.get("model")), mapping(made.get("vector")))):
        for parts in mapping(data.get("roles")).values():
            yield from parts if isinstance(parts, list) else ()
    attack = mapping(made.get("attack"))
    yield attack.get("task")
    yield attack.get("harmful") if attack.get("poison_ratio") else None
    guide = mapping(attack.get("guard")).get("guide")
    yield from guide if isinstance(guide, list) else ()


def _part(told: Any) -> Part | None:
    try:
        part = Part.model_validate(told)
    except ValidationError:
        return None
    return part if Path(part.source).is_file() else None


def _of(roles: Mapping[str, Iterable[Part]]) -> list[Part]:
    return [part for parts in roles.values() for part in parts]


def _files(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The files among some parts, whole, each once."""
    whole = {(part.source, part.split) for part in parts if sources.source_of(part.source).kind == "file"}
    return tuple(Part(source=source, split=split) for source, split in sorted(whole))
