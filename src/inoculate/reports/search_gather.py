"""Records of attack searches, sorted by model: the model before, trials, re-runs of the chosen attack, totals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from inoculate.core.errors import InputError
from inoculate.core.hashing import canonical, digest
from inoculate.core.records import Record
from inoculate.reports.gather import arms_of, is_search, settled, tell_apart
from inoculate.reports.runs import Arm, Point
from inoculate.reports.searches import AXES, Bound, Measured, Rerun, Search, SearchStudy, Seed, Spent, Trial
from inoculate.reports.store_view import StageView, StoreView
from inoculate.reports.wording import setting_text, visible

_DATA = "data"
"""A digest of the attacker's rows and of all prompts: searches on others are no seeds of one."""
_PROTOCOL = ("n_trials", "num_samples", "task", _DATA, "break_threshold", "utility_metric")
"""What makes searches of one model different searches."""
_NOT_SETTINGS = (
    *("origin", "finalist_of", "n_trials", "chosen_trial", _DATA),
    *("break_threshold", "min_utility", "utility_metric", "control"),
)


def gather_searches(view: StoreView) -> SearchStudy | None:
    """All searches of a store; None where there are none.

    Raises:
        InputError: a search without trials or without a re-run of its chosen attack, or a file that is torn.
    """
    by_stage: dict[str, list[Record]] = defaultdict(list)
    for record in view.records:
        if is_search(record):
            by_stage[record.stage].append(record)
    stages = [stage for stage in view.stages if stage.kind == "search" and stage.about is not None]
    if not stages:
        return None
    for stage in stages:
        _check(stage, by_stage[stage.folder])
    firsts = {stage.folder: _on_its_data(_first(by_stage[stage.folder]), stage) for stage in stages}
    arms = _arms(list(firsts.values()))
    searches = tuple(
        _search(view, stage.folder, by_stage[stage.folder], arms[_key(firsts[stage.folder])]) for stage in stages
    )
    judges = dict.fromkeys(
        row.judge
        for stage in stages
        for row in by_stage[stage.folder]
        if (row.metric, row.attack) == ("harmful_score", "chosen")
    )
    present = [search.arm for search in searches]
    return SearchStudy(tuple(arm for arm in arms.values() if arm in present), searches, tuple(judges) or ("",))


def _check(stage: StageView, rows: Sequence[Record]) -> None:
    file = stage.path / "records.jsonl"
    if not any(row.attack == "search" and row.trial is not None for row in rows):
        raise InputError("a search without a trial: nothing was tried", file=file, expected="rows of trials")
    if not any(row.attack == "chosen" for row in rows):
        raise InputError("a search whose chosen attack was not run again", file=file, expected="rows of re-runs")


def _first(rows: Sequence[Record]) -> Record:
    return next(row for row in rows if row.attack == "chosen")


def _on_its_data(row: Record, stage: StageView) -> Record:
    """With the digest of what was searched on; names of files do not count, their content does."""
    found = ((stage.about or {}).get("fingerprints") or {}).items()
    data = sorted(str(content) for name, content in found if "#" in name)  # the rest are models
    return replace(row, attack_params={**row.attack_params, _DATA: digest(data, 8)}) if data else row


def _search(view: StoreView, folder: str, rows: Sequence[Record], arm: Arm) -> Search:
    first, trials, finals, reruns = _first(rows), defaultdict(list), defaultdict(list), defaultdict(list)
    before, totals = [], {}
    for row in rows:
        if row.attack == "none" and row.split == "heldout":
            before.append(row)
        elif row.attack == "finalist":
            finals[row.attack_params["finalist_of"]].append(row)
        elif row.trial is not None:
            trials[row.trial].append(row)
        elif row.attack == "chosen":
            reruns[row.attack_seed or 0].append(row)
        elif row.attack == "search" and row.value is not None:
            totals[row.metric] = Spent(row.value, row.status == "censored")
    verdicts = _verdicts(view, folder)
    bound = Bound(
        first.attack_params.get("break_threshold", 0.5),
        first.attack_params.get("min_utility", 0.0),
        first.attack_params.get("utility_metric", "utility"),
    )
    return Search(
        folder=folder,
        arm=arm,
        seed=_seed(first),
        threat_model=first.threat_model,
        base=first.base,
        bound=bound,
        control=first.attack_params.get("control"),
        before=_measured(before),
        trials=tuple(_trial(number, members) for number, members in sorted(trials.items())),
        finals=tuple(_trial(number, members) for number, members in finals.items()),
        chosen=first.attack_params.get("chosen_trial"),
        setting=setting_of(first),
        reruns=tuple(_rerun(number, rows, verdicts.get(number, {})) for number, rows in sorted(reruns.items())),
        totals=totals,
    )


def setting_of(row: Record) -> dict[str, Any]:
    """What an attacker chose, with what has columns of its own."""
    kept = {name: value for name, value in settled(row.attack_params).items() if name not in _NOT_SETTINGS}
    return {**kept, "adapter_mode": row.adapter_mode, "poison_ratio": row.poison_ratio}


def _trial(number: int, rows: Sequence[Record]) -> Trial:
    found = {row.metric: row for row in rows}
    summary = found.get("bounded_harmful_score", rows[0])
    curves, spent = _measured(rows), found.get("break_steps")
    utility, harm = curves.at("utility", summary.step), curves.at("harmful_score", summary.step)
    return Trial(
        number=number,
        status=summary.status,
        setting=setting_of(summary),
        warm=summary.attack_params.get("origin") == "warm start",
        harmful=summary.value,
        point=(utility.value, harm.value) if utility and harm else None,
        broke=spent is not None and spent.status == "ok",
        steps=None if spent is None else spent.value,
    )


def _rerun(number: int, rows: Sequence[Record], verdicts: Mapping[int, Any]) -> Rerun:
    found = {row.metric: row for row in rows}
    costs = {axis.key: _spent(found.get(axis.metric)) for axis in AXES}
    bounded = found.get("bounded_harmful_score")
    return Rerun(
        number=number,
        costs=costs,
        harmful=None if bounded is None else bounded.value,
        worst=None if bounded is None else bounded.step,
        measured=_measured(rows),
        verdicts=verdicts,
    )


def _spent(row: Record | None) -> Spent | None:
    return None if row is None or row.value is None else Spent(row.value, row.status == "censored")


def _measured(rows: Iterable[Record]) -> Measured:
    by: dict[str, dict[str, dict[int, Point]]] = {}
    for row in rows:
        if row.value is not None and row.layer in ("", "all"):
            by.setdefault(row.metric, {}).setdefault(row.judge, {})[row.step or 0] = Point(row.value, row.n)
    return Measured(by)


def _verdicts(view: StoreView, folder: str) -> dict[int, dict[int, list[tuple[str, dict[str, str]]]]]:
    """Re-run → step → verdicts on restricted requests, in the order of the data."""
    found: dict[int, dict[int, list[tuple[str, dict[str, str]]]]] = defaultdict(lambda: defaultdict(list))
    for row in view.responses(folder):
        if row.get("set") == "restricted":
            of_step = found[row.get("attack_seed") or 0][row.get("step") or 0]
            of_step.append((str(row.get("prompt")), row.get("verdicts") or {}))
    return found


def _undefended(row: Record) -> bool:
    return row.defense in ("", "none") and not row.guard


def _seed(row: Record) -> Seed:
    return row.base_seed, row.defense_seed


def _key(row: Record) -> str:
    return canonical([_model(row), row.threat_model, row.base, _protocol(row)])


def _model(row: Record) -> str:
    return canonical([row.defense, settled(row.defense_params), row.guard, settled(row.guard_params)])


def _protocol(row: Record) -> dict[str, Any]:
    return {name: row.attack_params.get(name) for name in _PROTOCOL}


def _arms(firsts: Sequence[Record]) -> dict[str, Arm]:
    """Arms as everywhere, and told apart by threat model, base and how was searched where those differ."""
    plain, arms = arms_of(firsts), {}
    bases = {row.base: PurePath(row.base).name for row in firsts}
    bases = bases if len(set(bases.values())) == len(bases) else {base: base for base in bases}
    for row in firsts:
        arm, alike = plain[_model(row)], [other for other in firsts if _model(other) == _model(row)]
        # A model that somebody brought has no defense of ours; to call it undefended is wrong if it has a control.
        brought = _undefended(row) and (
            row.attack_params.get("control") or len({r.base for r in alike}) > 1 or all(map(_undefended, firsts))
        )
        label = visible(bases[row.base]) if brought and row.base else arm.label
        rows = [{"threat_model": r.threat_model, **_protocol(r)} for r in alike]
        if not brought:
            rows = [{"base": bases[r.base], **flat} for r, flat in zip(alike, rows, strict=True)]
        own = rows[alike.index(row)]
        telling = tell_apart(rows, list(own))
        told = [setting_text(name, own[name]) for name in telling]
        label += f" ({', '.join(told)})" if told else ""
        arms[_key(row)] = replace(arm, label=label, model=_key(row))
    return arms
