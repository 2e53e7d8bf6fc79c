"""Judges: one response → one verdict. `JUDGES` is the one table of them.

Other packages add to it by entry points of the group `inoculate.judges`.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from inoculate.core.plugins import OneOf, Table, fault_of_value
from inoculate.evals.judges.classifier import ClassifierJudge
from inoculate.evals.judges.endpoint import EndpointJudge
from inoculate.evals.judges.reference import ReferenceJudge
from inoculate.evals.judges.refusal import RefusalJudge

AnyJudge: TypeAlias = RefusalJudge | ReferenceJudge | ClassifierJudge | EndpointJudge


def _fault(name: str, thing: Any) -> str | None:
    return fault_of_value(name, thing, "judge", "judge_many")


JUDGES: Table[type[AnyJudge]] = Table(
    "inoculate.judges",
    {
        "refusal": RefusalJudge,
        "reference": ReferenceJudge,
        "classifier": ClassifierJudge,
        "endpoint": EndpointJudge,
    },
    _fault,
)

JudgeConfig: TypeAlias = Annotated[AnyJudge, OneOf(JUDGES)]
"""A judge as a value in a recipe, told apart by `name`."""

__all__ = ["JUDGES", "AnyJudge", "ClassifierJudge", "EndpointJudge", "JudgeConfig", "ReferenceJudge", "RefusalJudge"]
