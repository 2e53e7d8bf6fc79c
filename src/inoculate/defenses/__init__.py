"""Defenses: one paper, one file, none imports another. `DEFENSES` is the one table of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from inoculate.defenses.adversarial import AdversarialTraining
from inoculate.defenses.booster import Booster
from inoculate.defenses.lisa import Lisa
from inoculate.defenses.mlac import MLAC
from inoculate.defenses.repnoise import RepNoise
from inoculate.defenses.security_vectors import SecurityVector
from inoculate.defenses.sft import SFT
from inoculate.defenses.together import Together
from inoculate.defenses.vaccine import Vaccine

DEFENSES = {
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

DefenseConfig = Annotated[
    SFT | Booster | Vaccine | RepNoise | MLAC | AdversarialTraining | Together, Field(discriminator="name")
]
"""What a recipe may write under `align.defense:`. The others are guards of a user's fine-tuning."""

AnyDefense = Annotated[DefenseConfig | SecurityVector | Lisa, Field(discriminator="name")]
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
