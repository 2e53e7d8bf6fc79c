"""Plug-ins that cannot be used, each for another reason."""

from __future__ import annotations

from typing import Literal

from inoculate import Booster
from inoculate.core.types import Value


class Unnamed(Booster):
    """Its name is Booster's own."""


class Idle(Value):
    """It trains nothing."""

    name: Literal["idle"] = "idle"


class Late(Booster):
    """Its name is one that another package took first."""

    name: Literal["halved"] = "halved"  # pyright: ignore[reportIncompatibleVariableOverride]
