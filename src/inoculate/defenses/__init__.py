"""Defenses: one paper, one file, none imports another. `DEFENSES` is the one table of them.

Other packages add to it by entry points of the group `inoculate.defenses`.
"""

from __future__ import annotations

from typing import Annotated, Any

from inoculate.core.plugins import OneOf, Table, fault_of_value
from inoculate.defenses.adversarial import AdversarialTraining
from inoculate.defenses.booster import Booster
from inoculate.defenses.lisa import Lisa
from inoculate.defenses.mlac import MLAC
from inoculate.defenses.repnoise import RepNoise
from inoculate.defenses.security_vectors import SecurityVector
from inoculate.defenses.sft import SFT
from inoculate.defenses.together import Together
from inoculate.defenses.vaccine import Vaccine

AlignmentDefense = SFT | Booster | Vaccine | RepNoise | MLAC | AdversarialTraining | Together

_OWN = {
    "sft": SFT,
    "booster": Booster,
    "vaccine": Vaccine,
    "repnoise": RepNoise,
    "security_vector": SecurityVector,
    "lisa": Lisa,
    "mlac": MLAC,
    "adversarial": AdversarialTraining,
    "together": Together,
}


def _fault(name: str, thing: Any) -> str | None:
    return fault_of_value(name, thing, "needs", "backward")


DEFENSES = Table("inoculate.defenses", _OWN, _fault)

DefenseConfig = Annotated[AlignmentDefense, OneOf(DEFENSES, but=("security_vector", "lisa"))]
"""What a recipe may write under `align.defense:`. The others are guards of a user's fine-tuning."""

AnyDefense = Annotated[AlignmentDefense | SecurityVector | Lisa, OneOf(DEFENSES)]
"""Whatever `fit` can train by."""

__all__ = [
    "DEFENSES",
    "MLAC",
    "SFT",
    "AdversarialTraining",
    "AnyDefense",
    "Booster",
    "DefenseConfig",
    "Lisa",
    "RepNoise",
    "SecurityVector",
    "Together",
    "Vaccine",
]
