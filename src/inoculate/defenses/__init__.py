"""Defenses: one paper, one file, none imports another. `DEFENSES` is the one table of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from inoculate.defenses.booster import Booster
from inoculate.defenses.sft import SFT

DEFENSES = {"sft": SFT, "booster": Booster}

DefenseConfig = Annotated[SFT | Booster, Field(discriminator="name")]
"""What a recipe may write under `defense:`."""

__all__ = ["DEFENSES", "SFT", "Booster", "DefenseConfig"]
