"""Records gathered into runs: which defense, attacked how, from which seeds, and the curve that was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from inoculate.core.hashing import canonical
from inoculate.core.records import Record
from inoculate.reports.wording import defense_name, setting_text

ALWAYS = ("poison_ratio", "learning_rate")
_FIRST = (
    "poison_ratio",
    "learning_rate",
    "threat_model",
    "base",
    "attack",
    "adapter_mode",
    "num_samples",
    "harmful_samples",
)
_SHOWN_FIRST = ("lam", "alpha", "rho")
_UNTOUCHED = ("", "none")
"""Names of the attack on rows that were measured without one."""


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
    return _told(setting, grid.varying([s for s in grid.settings() if harmful(s)]) or grid.keys[:2])


def in_order(setting: Mapping[str, Any]) -> list[Any]:
    """Sort key: attacks with harmful data, then the benign ones (p = 0), each by its values."""
    return [not harmful(setting), *(_sortable(value) for value in setting.values())]


def harmful(setting: Mapping[str, Any]) -> bool:
    """Whether the attacker's data hold anything harmful (or nobody said)."""
    return setting.get("poison_ratio") != 0


def gather(records: Iterable[Record]) -> Grid:
    """Sort records into runs. Rows of the split `validation` chose the attack and are left out."""
    groups: dict[tuple[str, int | None], list[Record]] = defaultdict(list)
    for record in records:
        if record.split != "validation":
            groups[record.stage, record.trial].append(record)
    firsts = [group[0] for group in groups.values()]
    arms = _arms(firsts)
    attacked = [first for first in firsts if first.attack not in _UNTOUCHED]
    flat = [_flat(first) for first in attacked]
    keys = _telling(flat, (*_FIRST, *sorted({key for row in flat for key in row})), ALWAYS)
    runs = [_run(group, arms[_arm_key(group[0])], keys) for group in groups.values()]
    judges = dict.fromkeys(judge for run in runs for judge in run.curves.get("harmful_score", {}))
    attacks = tuple(run for run in runs if run.attacked)
    return Grid(
        arms=tuple(dict.fromkeys(arms.values())),
        attacks=attacks,
        before=_before([run for run in runs if not run.attacked], attacks),
        judges=tuple(judges) or ("",),
        keys=keys,
    )


def _run(group: Sequence[Record], arm: Arm, keys: Sequence[str]) -> Run:
    first = group[0]
    flat = _flat(first)
    seeds = (first.base_seed, first.defense_seed, first.attack_seed, first.trial)
    run = Run(first.stage, arm, {key: flat.get(key) for key in keys}, seeds, first.attack not in _UNTOUCHED)
    for row in group:
        if row.value is None:
            run.lost = row.status
        elif row.metric == "steps_to_break":
            run.breaks[row.judge] = Break(row.value, row.status == "censored", row.attack_params.get("break_threshold"))
        else:
            by_step = run.curves.setdefault(row.metric, {}).setdefault(row.judge, {})
            by_step[row.step or 0] = Point(row.value, row.n)
    return run


def _before(measured: list[Run], attacks: Sequence[Run]) -> tuple[Run, ...]:
    """Every aligned model once: its own evaluation, or else step 0 of an attack on it."""
    started = [run for run in attacks if run.curves]
    seen = {(run.arm, run.seed[:2]): run for run in (*reversed(started), *reversed(measured))}
    return tuple(reversed(list(seen.values())))


def _arms(firsts: Sequence[Record]) -> dict[str, Arm]:
    by_defense: dict[str, dict[str, Record]] = {}
    for first in firsts:
        by_defense.setdefault(first.defense, {}).setdefault(_arm_key(first), first)
    arms = {}
    for defense, members in by_defense.items():
        rows = [_settled(member.defense_params) for member in members.values()]
        names = (*_SHOWN_FIRST, *sorted({name for row in rows for name in row}))
        telling = _telling(rows, names)
        for key, row in zip(members, rows, strict=True):
            label = " ".join([defense_name(defense), *(setting_text(name, row.get(name)) for name in telling)])
            arms[key] = Arm(label, defense, row, telling)
    return arms


def _told(setting: Mapping[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(setting_text(key, setting.get(key)) for key in keys)


def _arm_key(record: Record) -> str:
    return canonical([record.defense, _settled(record.defense_params)])


def _telling(rows: Sequence[Mapping[str, Any]], names: Sequence[str], always: Sequence[str] = ()) -> tuple[str, ...]:
    """Names that tell rows apart; one that follows from those before it (n·p from n and p) is not needed."""
    kept: list[str] = []
    for name in dict.fromkeys(names):
        seen: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            seen[canonical([row.get(key) for key in kept])].add(canonical(row.get(name)))
        present = name in always and any(row.get(name) is not None for row in rows)
        if present or any(len(values) > 1 for values in seen.values()):
            kept.append(name)
    return tuple(kept)


def _flat(record: Record) -> dict[str, Any]:
    columns = ("poison_ratio", "harmful_samples", "threat_model", "base", "attack", "adapter_mode")
    return {**_settled(record.attack_params), **{name: getattr(record, name) for name in columns}}


def _settled(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters without seeds, which are draws and not settings, and without the rule of measurement."""
    return {name: value for name, value in params.items() if not name.endswith("seed") and name != "break_threshold"}


def _sortable(value: Any) -> tuple[int, float, str]:
    if isinstance(value, int | float):
        return (0, float(value), "")
    return (1, 0.0, str(value))
