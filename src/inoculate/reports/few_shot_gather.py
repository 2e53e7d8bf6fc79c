"""Records of few-shot studies, sorted by world, attacker, starting point, task and n."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from inoculate.core.hashing import canonical
from inoculate.core.records import Record
from inoculate.reports.few_shot import ADVERSARIAL, MLAC, PRETRAINED, RANDOM, TUNED, Key, Seed, Study
from inoculate.reports.gather import is_few_shot, settled, tell_apart
from inoculate.reports.runs import Arm, sortable
from inoculate.reports.wording import defense_name, setting_text, visible

_NAMES = {
    RANDOM: "Random initialization",
    PRETRAINED: "Pretrained",
    TUNED: "Tuned",
    ADVERSARIAL: "Adversarial",
    MLAC: "MLAC",
}
_ALWAYS = {ADVERSARIAL: ("calibrated",)}
"""Adversarial training as it was published is uncalibrated; calibrated it is another defense, so labels always say."""
_TOLD_FIRST = ("inner_steps", "order", "calibrated", "head", "inner_optimizer", "adversary_learning_rate")
_FOUND = ("learning_rate", "steps", "batch_size", "frozen", "freeze_body", "optimizer", "classes", "outcome")
"""Attack parameters that the search chose, or the task; all others name the attacker."""


def studies(records: Iterable[Record]) -> tuple[Study, ...]:
    """One study for each base and attacker, in the records' order; none where there are no such records."""
    by_base: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if is_few_shot(record):
            by_base[canonical([record.base, record.base_params])].append(record)
    bases = _titles([rows[0] for rows in by_base.values()])
    found = []
    for base, rows in zip(bases, by_base.values(), strict=True):
        arms = _arms(rows)
        starts = [row for row in rows if row.attack != "few_shot"]
        attackers: dict[str, list[Record]] = defaultdict(list)
        for row in rows:
            if row.attack == "few_shot":
                attackers[canonical(_attacker(row))].append(row)
        settings = [_attacker(members[0]) for members in attackers.values()]
        names = tell_apart(settings, sorted({name for row in settings for name in row}))
        for setting, members in zip(settings, attackers.values(), strict=True):
            title = ", ".join([base, *(told(name, setting.get(name)) for name in names)])
            found.append(_study(title, arms, members, starts))
        if not attackers:
            found.append(_study(base, arms, [], starts))
    return tuple(found)


def _titles(firsts: Sequence[Record]) -> list[str]:
    """What each base is called: its name, and the settings that tell it from others of that name."""
    flat = [{f"{part} {k}": v for part, d in row.base_params.items() for k, v in d.items()} for row in firsts]
    telling = tell_apart(flat, sorted({name for row in flat for name in row}))
    return [
        ", ".join([visible(row.base), *(told(name, params[name]) for name in telling if name in params)])
        for row, params in zip(firsts, flat, strict=True)
    ]


def told(name: str, value: Any) -> str:
    """A setting in a label: `K 8`, `uncalibrated`, `head fresh`."""
    if isinstance(value, bool):
        return visible(name.replace("_", " ") if value else f"un{name}" if name == "calibrated" else f"no {name}")
    if isinstance(value, list | tuple):
        return setting_text(name, "/".join(str(part) for part in value))
    return setting_text(name, value)


def _study(title: str, arms: Mapping[str, Arm], attacked: Sequence[Record], starts: Sequence[Record]) -> Study:
    values: dict[tuple[str, Key], dict[Seed, list[float]]] = defaultdict(lambda: defaultdict(list))
    stages: dict[tuple[Key, Seed], set[str]] = defaultdict(set)
    lost: dict[Key, list[int]] = defaultdict(lambda: [0, 0])
    trials: dict[str, int] = defaultdict(int)
    reruns: dict[str, set[int]] = defaultdict(set)
    for row in attacked:
        key = (arms[_arm_key(row)], row.metric.removesuffix("_accuracy"), row.harmful_samples or 0)
        trials[row.stage] += row.trial is not None
        if row.trial is not None:
            continue
        stages[key, _seed(row)].add(row.stage)
        reruns[row.stage] |= {row.attack_seed} if row.attack_seed is not None else set()
        if row.value is not None:
            values[row.split, key][_seed(row)].append(row.value)
        elif row.split == "heldout":
            lost[key][row.attack_seed is None] += 1
    own: dict[tuple[str, Arm], dict[Seed, float]] = defaultdict(dict)
    for row in starts:
        if row.value is not None:
            own[row.metric, arms[_arm_key(row)]][_seed(row)] = row.value
    present = {key[0] for key, _ in stages} | {arm for _, arm in own}
    return Study(
        title=title,
        arms=tuple(arm for arm in arms.values() if arm in present),
        scores={key: {seed: sum(v) / len(v) for seed, v in seeds.items()} for key, seeds in values.items()},
        lost={key: (counts[0], counts[1]) for key, counts in lost.items()},
        own=own,
        classes={row.metric.removesuffix("_accuracy"): row.attack_params.get("classes", 0) for row in attacked},
        rows={
            split: tuple(sorted({row.n for row in attacked if row.split == split and row.n}))
            for split in ("heldout", "validation")
        },
        searches=len(trials),
        most_trials=max(trials.values(), default=0),
        reruns=tuple(sorted({len(seen) for seen in reruns.values() if seen})),
        merged=sum(len(folders) > 1 for folders in stages.values()),
    )


def _arms(rows: Sequence[Record]) -> dict[str, Arm]:
    """Starting points in the order of tables. A label names what tells a start from the others of its defense."""
    by_defense: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        by_defense[row.defense].setdefault(_arm_key(row), settled(row.defense_params))
    arms = {}
    for defense in sorted(by_defense, key=lambda name: list(_NAMES).index(name) if name in _NAMES else len(_NAMES)):
        members = by_defense[defense]
        names = (*_TOLD_FIRST, *sorted({name for params in members.values() for name in params}))
        telling = tell_apart(list(members.values()), names, _ALWAYS.get(defense, ()))
        ordered = sorted(members.items(), key=lambda item: [sortable(item[1].get(name)) for name in telling])
        for key, params in ordered:
            label = " ".join([_NAMES.get(defense) or defense_name(defense), ", ".join(_settings(params, telling))])
            arms[key] = Arm(label.strip(), defense, params, telling, model=canonical(params))
    return arms


def _settings(params: Mapping[str, Any], telling: Sequence[str]) -> list[str]:
    return [told(name, params.get(name)) for name in telling]


def _arm_key(row: Record) -> str:
    return canonical([row.defense, settled(row.defense_params)])


def _attacker(row: Record) -> dict[str, Any]:
    return {name: value for name, value in settled(row.attack_params).items() if name not in _FOUND}


def _seed(row: Record) -> Seed:
    return row.base_seed, row.defense_seed
