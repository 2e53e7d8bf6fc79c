"""Records sorted into runs, and the axes that tell the runs apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from inoculate.core.hashing import canonical
from inoculate.core.records import Record
from inoculate.reports.runs import Arm, Break, Grid, Point, Run
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


def is_few_shot(record: Record) -> bool:
    """Whether a row is of a few-shot study, or of a body where one starts: those have tables of their own."""
    return record.attack == "few_shot" or record.stage.startswith("start-")


def is_cost(record: Record) -> bool:
    """Whether a row says what a step costs: those have a table of their own."""
    return record.stage.startswith("cost-")


def is_search(record: Record) -> bool:
    """Whether a row is of an attack search: those have a part of their own."""
    return record.stage.startswith("search-")


def gather(records: Iterable[Record]) -> Grid:
    """Sort records into runs; left out are rows of few-shot and cost studies, of searches, and of `validation`, which
    chose an attack.
    """
    groups: dict[tuple[str, int | None], list[Record]] = defaultdict(list)
    for record in records:
        apart = is_few_shot(record) or is_cost(record) or is_search(record)
        if record.split != "validation" and not apart:
            groups[record.stage, record.trial].append(record)
    firsts = [group[0] for group in groups.values()]
    arms = arms_of(firsts)
    attacked = [first for first in firsts if first.attack not in _UNTOUCHED]
    rows = [flat(first) for first in attacked]
    keys = tell_apart(rows, (*_FIRST, *sorted({key for row in rows for key in row})), ALWAYS)
    runs = [_run(group, arms[_arm_key(group[0])], keys) for group in groups.values()]
    judges = dict.fromkeys(judge for run in runs for judge in run.curves.get("harmful_score", {}))
    attacks = tuple(run for run in runs if run.attacked)
    return Grid(
        arms=tuple(dict.fromkeys(arms.values())),
        attacks=attacks,
        before=_before([run for run in runs if not run.attacked], attacks),
        judges=tuple(judges) or ("",),
        keys=keys,
        shared={name: rows[0].get(name) for name in _FIRST if len({canonical(row.get(name)) for row in rows}) == 1},
    )


def _run(group: Sequence[Record], arm: Arm, keys: Sequence[str]) -> Run:
    first = group[0]
    setting = flat(first)
    seeds = (first.base_seed, first.defense_seed, first.attack_seed, first.trial)
    run = Run(first.stage, arm, {key: setting.get(key) for key in keys}, seeds, first.attack not in _UNTOUCHED)
    for row in group:
        if row.layer not in ("", "all"):
            continue
        if row.value is None:
            run.lost = row.status
        elif row.metric == "steps_to_break":
            run.breaks[row.judge] = Break(row.value, row.status == "censored", row.attack_params.get("break_threshold"))
        else:
            by_step = run.curves.setdefault(row.metric, {}).setdefault(row.judge, {})
            by_step[row.step or 0] = Point(row.value, row.n)
    return run


def _before(measured: list[Run], attacks: Sequence[Run]) -> tuple[Run, ...]:
    """Every aligned model once: its own evaluation, or else step 0 of an attack on it. A guard changes no model."""
    plain = {_unguarded(run.arm) for run in (*measured, *attacks) if not run.arm.guard}
    started = [run for run in attacks if run.curves and not (run.arm.guard and _unguarded(run.arm) in plain)]
    seen = {(run.arm, run.seed[:2]): run for run in (*reversed(started), *reversed(measured))}
    return tuple(reversed(list(seen.values())))


def arms_of(firsts: Sequence[Record]) -> dict[str, Arm]:
    """Defense, settings and guard as text → arm."""
    by_defense: dict[str, dict[str, Record]] = {}
    for first in firsts:
        by_defense.setdefault(first.defense, {}).setdefault(_arm_key(first), first)
    arms = {}
    for defense, members in by_defense.items():
        rows = [settled(member.defense_params) for member in members.values()]
        names = (*_SHOWN_FIRST, *sorted({name for row in rows for name in row}))
        telling = tell_apart(rows, names)
        guards = _guard_labels(list(members.values()))
        for (key, member), row in zip(members.items(), rows, strict=True):
            label = " ".join([defense_name(defense), *(setting_text(name, row.get(name)) for name in telling)])
            text, differ = guards[key]
            settings = {**row, **settled(member.guard_params)}
            arms[key] = Arm(label + text, defense, settings, (*telling, *differ), member.guard, canonical(row))
    return arms


def _unguarded(arm: Arm) -> tuple[str, str]:
    return arm.defense, arm.model


def _guard_labels(members: Sequence[Record]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Arm → ` + Security Vector r 8`, and the names of those settings in which guards of its name differ."""
    labels = {}
    for member in members:
        alike = [settled(other.guard_params) for other in members if other.guard == member.guard]
        telling = tell_apart(alike, sorted({name for row in alike for name in row}))
        told = [setting_text(name, settled(member.guard_params).get(name)) for name in telling]
        text = " + " + " ".join([defense_name(member.guard), *told]) if member.guard else ""
        labels[_arm_key(member)] = (text, telling)
    return labels


def _arm_key(record: Record) -> str:
    return canonical([record.defense, settled(record.defense_params), record.guard, settled(record.guard_params)])


def tell_apart(rows: Sequence[Mapping[str, Any]], names: Sequence[str], always: Sequence[str] = ()) -> tuple[str, ...]:
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


def flat(record: Record) -> dict[str, Any]:
    """All settings of the attack on a row, those that have columns of their own beside the rest."""
    columns = ("poison_ratio", "harmful_samples", "threat_model", "base", "attack", "adapter_mode")
    return {**settled(record.attack_params), **{name: getattr(record, name) for name in columns}}


def settled(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters without seeds, which are draws and not settings, and without the rule of measurement."""
    return {name: value for name, value in params.items() if not name.endswith("seed") and name != "break_threshold"}
