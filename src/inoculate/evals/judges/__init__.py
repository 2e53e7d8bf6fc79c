"""Judges: one response → one verdict. `JUDGES` is the one table of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, TypeAlias

from pydantic import Field

from inoculate.evals.judges.classifier import ClassifierJudge
from inoculate.evals.judges.endpoint import EndpointJudge
from inoculate.evals.judges.reference import ReferenceJudge
from inoculate.evals.judges.refusal import RefusalJudge

AnyJudge: TypeAlias = RefusalJudge | ReferenceJudge | ClassifierJudge | EndpointJudge
JudgeConfig: TypeAlias = Annotated[AnyJudge, Field(discriminator="name")]
"""A judge as a value in a recipe, told apart by `name`."""

JUDGES: Mapping[str, type[AnyJudge]] = MappingProxyType(
    {
        "refusal": RefusalJudge,
        "reference": ReferenceJudge,
        "classifier": ClassifierJudge,
        "endpoint": EndpointJudge,
    }
)

__all__ = ["JUDGES", "AnyJudge", "ClassifierJudge", "EndpointJudge", "JudgeConfig", "ReferenceJudge", "RefusalJudge"]
