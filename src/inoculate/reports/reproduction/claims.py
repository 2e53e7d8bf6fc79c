"""A published claim, how it is measured here, and when it counts as reproduced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol, TypeAlias

from inoculate.core.records import Record
from inoculate.evals.statistics import Estimate

Measure: TypeAlias = "Callable[[Sequence[Record]], list[Finding]]"


class Verdict(IntEnum):
    """What a measurement says of a claim; of several the least counts."""

    NOT_REPRODUCED = 0
    DIRECTION_ONLY = 1
    REPRODUCED = 2

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


class Rule(Protocol):
    """When a claim holds."""

    def verdict(self, found: Estimate) -> Verdict:
        """What the estimate says. A single seed has no interval, and gives a direction at best."""
        ...


@dataclass(frozen=True)
class Below:
    """The quantity is less than `limit`: reproduced if the whole interval is."""

    limit: float = 0.0

    def verdict(self, found: Estimate) -> Verdict:
        """See the class."""
        return _from(found.value < self.limit, found.interval is not None and found.interval.high < self.limit)

    def __str__(self) -> str:
        return f"< {self.limit:g}"


@dataclass(frozen=True)
class Above:
    """The quantity is greater than `limit`: reproduced if the whole interval is."""

    limit: float = 0.0

    def verdict(self, found: Estimate) -> Verdict:
        """See the class."""
        return _from(found.value > self.limit, found.interval is not None and found.interval.low > self.limit)

    def __str__(self) -> str:
        return f"> {self.limit:g}"


@dataclass(frozen=True)
class Within:
    """The quantity lies within ±`margin` of 0, or of `around`: reproduced if the whole interval does."""

    margin: float
    around: float = 0.0

    def verdict(self, found: Estimate) -> Verdict:
        """See the class."""
        low, high = self.around - self.margin, self.around + self.margin
        inside = found.interval is not None and low <= found.interval.low and found.interval.high <= high
        return _from(low <= found.value <= high, inside)

    def __str__(self) -> str:
        return f"within {f'{self.around:g} ' if self.around else ''}± {self.margin:g}"


def _from(mean_holds: bool, interval_holds: bool) -> Verdict:
    if not mean_holds:
        return Verdict.NOT_REPRODUCED
    return Verdict.REPRODUCED if interval_holds else Verdict.DIRECTION_ONLY


class Finding(NamedTuple):
    """One number behind a claim. `found` is None where the records hold nothing of the kind."""

    label: str
    found: Estimate | None
    rule: Rule


@dataclass(frozen=True)
class Claim:
    """One row of docs/reproduction.md."""

    paper: str
    text: str
    published: str
    """The published number and where it stands."""
    recipe: str
    """Whose records are asked."""
    setting: str
    """What ours is a measurement of, in a few words."""
    measure: Measure | None = None
    """None: nothing smaller than the published setting can answer it."""


def verdict(findings: Sequence[Finding]) -> Verdict | None:
    """The least of the findings' verdicts; None if one of them was not measured, or there are none."""
    if not findings or any(finding.found is None for finding in findings):
        return None
    return min(finding.rule.verdict(finding.found) for finding in findings if finding.found is not None)
