"""The table of attacks; other packages add to it by entry points of the group `inoculate.attacks`.

A plug-in's attack is a subclass of `Finetune`: its budget, data and place in records are those of a fine-tuning, and
what it overrides (`mix`, `objective`, `run`) is what it does with them. It stands under `attack:` in recipes; the
search over attacks remains one over `finetune`.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from inoculate.attacks.few_shot import FewShot
from inoculate.attacks.finetune import Finetune
from inoculate.core.plugins import OneOf, Table, fault_of_value


def _fault(name: str, thing: Any) -> str | None:
    if isinstance(thing, type) and not issubclass(thing, Finetune):
        return "expected a subclass of inoculate.Finetune"
    return fault_of_value(name, thing, "run")


ATTACKS: Table[Any] = Table("inoculate.attacks", {"finetune": Finetune, "few_shot": FewShot}, _fault)

FinetuneConfig: TypeAlias = Annotated[Finetune, OneOf(ATTACKS, of=Finetune, default="finetune")]
"""A user's or an attacker's fine-tuning as a value in a recipe; a mapping without a name is `finetune`."""
