"""Records gathered into runs: which defense, attacked how, from which seeds, and the curve that was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from inoculate.core.hashing import canonical
from inoculate.reports.wording import setting_text


class Point(NamedTuple):
    """A measured value and the number of prompts behind it."""

    value: float
    n: int | None


class Break(NamedTuple):
    """Steps until the model broke; censored when it did not, and `steps` is how long that was watched."""

    steps: float
    censored: bool
    threshold: float | None


@dataclass(frozen=True)
class Arm:
    """A defense with its hyperparameters. The label names only what tells it from the other arms."""

    label: str
    defense: str
    params: Mapping[str, Any] = field(compare=False)
    telling: tuple[str, ...] = field(default=(), compare=False)
    """The hyperparameters in which the arms of this defense differ."""
    guard: str = ""
    """What the provider did inside the attack's training."""
    model: str = field(default="", compare=False)
    """The defense's own settings as text, the same whatever guards the model."""


@dataclass
class Run:
    """One model along one attack, or as it was before any (`attacked` false)."""

    stage: str
    arm: Arm
    setting: dict[str, Any]
    seed: tuple[Any, ...]
    attacked: bool
    lost: str = ""
    """`diverged` or `failed`, if the run did not reach its end."""
    curves: dict[str, dict[str, dict[int, Point]]] = field(default_factory=dict)
    """Metric → judge → step → value."""
    breaks: dict[str, Break] = field(default_factory=dict)

    def curve(self, metric: str, judge: str) -> dict[int, Point]:
        """Step → value by this judge, or by whoever gave this metric."""
        by_judge = self.curves.get(metric, {})
        return by_judge.get(judge) or next(iter(by_judge.values()), {})

    def at_start(self, metric: str, judge: str) -> Point | None:
        """The value before the first attack step."""
        return self.curve(metric, judge).get(0)

    def at_end(self, metric: str, judge: str) -> Point | None:
        """The value at the last measured step; None for a run that was lost on the way."""
        curve = self.curve(metric, judge)
        return curve[max(curve)] if curve and not self.lost else None

    def at_break(self, metric: str, judge: str) -> Point | None:
        """The value at the step at which the model broke; None if it did not."""
        broke = self.broke(judge)
        return self.curve(metric, judge).get(int(broke.steps)) if broke and not broke.censored else None

    def broke(self, judge: str) -> Break | None:
        """When the model broke; None where that was not measured, or the run was lost before it broke."""
        found = self.breaks.get(judge)
        return None if found is not None and found.censored and self.lost else found


@dataclass(frozen=True)
class Grid:
    """All runs of a store, and the axes that tell them apart."""

    arms: tuple[Arm, ...]
    attacks: tuple[Run, ...]
    before: tuple[Run, ...]
    judges: tuple[str, ...]
    keys: tuple[str, ...]
    """Attack settings that name a run's cell, beside arm and seed."""
    shared: Mapping[str, Any]
    """Settings that are the same in all attacks."""

    def settings(self) -> list[dict[str, Any]]:
        """The attack settings that were tried, in order."""
        unique = {canonical(run.setting): run.setting for run in self.attacks}
        return sorted(unique.values(), key=in_order)

    def varying(self, among: Sequence[Mapping[str, Any]] | None = None) -> tuple[str, ...]:
        """Keys that take more than one value among some settings, by default all."""
        settings = self.settings() if among is None else among
        return tuple(key for key in self.keys if len({canonical(s.get(key)) for s in settings}) > 1)

    def cell(self, arm: Arm, setting: Mapping[str, Any]) -> list[Run]:
        """The runs of one arm under one setting, by seed."""
        return [run for run in self.attacks if run.arm == arm and run.setting == setting]


def setting_label(grid: Grid, setting: dict[str, Any]) -> str:
    """What tells a setting from the others, in a few words: `p 0.1, lr 1e-5`."""
    return _told(setting, grid.varying() or grid.keys[:2])


def harmful_label(grid: Grid, setting: dict[str, Any]) -> str:
    """What tells a setting from the others with harmful data."""
    return _told(setting, grid.varying([s for s in grid.settings() if harmful(s)]) or ("learning_rate",))


def in_order(setting: Mapping[str, Any]) -> list[Any]:
    """Sort key: attacks with harmful data, then the benign ones (p = 0), each by threat model and values."""
    return [
        not harmful(setting),
        str(setting.get("threat_model", "")),
        *(sortable(value) for value in setting.values()),
    ]


def harmful(setting: Mapping[str, Any]) -> bool:
    """Whether the attacker's data hold anything harmful (or nobody said)."""
    return setting.get("poison_ratio") != 0


def _told(setting: Mapping[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(setting_text(key, setting.get(key)) for key in keys)


def sortable(value: Any) -> tuple[int, float, str]:
    """Sort key of a setting's value: numbers by size, then all else as text."""
    if isinstance(value, int | float):
        return (0, float(value), "")
    return (1, 0.0, str(value))
