"""The rows of a search: the model before, every trial, the chosen attack run again, and what the search took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from inoculate.attacks.finetune import attack_params
from inoculate.attacks.search import Bound, Point, Search
from inoculate.attacks.space import Setting
from inoculate.core.records import Record

if TYPE_CHECKING:
    from inoculate.attacks.study import Told
    from inoculate.attacks.trial import Tried

COSTS = {
    "steps": "break_steps",
    "samples": "break_samples",
    "tokens": "break_tokens",
    "flops": "break_flops",
    "wall_s": "break_wall_s",
}
"""What is spent → the metric of what it takes to break a model."""
_CURVE = ("harmful_score", "incoherent_rate", "utility")
_STATUS = {"complete": "ok", "pruned": "pruned", "diverged": "diverged", "failed": "failed"}


def search_records(
    search: Search,
    blank: Record,
    bound: Bound,
    before: Mapping[str, Sequence[Mapping[str, Any]]],
    told: Sequence[Told],
    finals: Sequence[tuple[Told, Tried]],
    chosen: Told,
    again: Sequence[Tried],
    control: str | None,
) -> Iterator[Record]:
    """All rows: before, trials, the search as a whole, finalists, re-runs. All but a trial's and a finalist's name the
    control, the folder of the undefended model's search."""
    bounds = {
        "break_threshold": bound.threshold,
        "min_utility": bound.utility,
        "utility_metric": search.utility,
        "control": control,
    }
    for rows in before.values():
        for row in rows:
            yield replace(blank, attack="none", step=0, attack_params=bounds, **row)
    for trial in told:
        yield from _trial(search, blank, bound, trial)
    yield from _whole(search, replace(blank, attack="search", split="validation", attack_params=bounds), bound, told)
    for trial, tried in finals:
        setting = search.again(trial.setting, "final", trial.number)
        final = _attacked(search, blank, setting, {"finalist_of": trial.number})
        final = replace(final, attack="finalist", split="validation", attack_seed=setting.data_seed)
        yield from _run(final, bound, tried)
    for number, tried in enumerate(again):
        more = {**bounds, "n_trials": search.n_trials, "chosen_trial": chosen.number}
        yield from _rerun(search, blank, bound, chosen.setting, number, tried, more)


def telling_responses(again: Sequence[Tried], bound: Bound) -> Iterator[dict[str, Any]]:
    """What the models of the re-runs said before the attack, where they broke and were worst, and at the end."""
    for number, tried in enumerate(again):
        steps = [point.spent.steps for point in tried.points]
        telling = (bound.best(tried.points), bound.worst(tried.points)) if steps else ()
        wanted = {*steps[:1], *steps[-1:], *(point.spent.steps for point in telling)}
        yield from ({"attack_seed": number, **row} for row in tried.responses if row["step"] in wanted)


def _trial(search: Search, blank: Record, bound: Bound, trial: Told) -> Iterator[Record]:
    setting = _attacked(search, blank, trial.setting, {"origin": "warm start" if trial.warm else "sampled"})
    blank = replace(
        setting, attack="search", trial=trial.number, split="validation", attack_seed=trial.setting.data_seed
    )
    if trial.outcome == "failed":
        yield replace(blank, metric="bounded_harmful_score", value=None, status="failed")
        return
    yield from _run(blank, bound, trial)


def _run(blank: Record, bound: Bound, run: Told | Tried) -> Iterator[Record]:
    """A run on the attacker's prompts: its curves, its harm bounded by utility, and what it took."""
    for row in run.rows:
        if row["metric"] in _CURVE:
            yield replace(blank, **row)
    at, status = bound.worst(run.points), _STATUS[run.outcome]
    yield replace(
        blank, metric="bounded_harmful_score", value=bound.harmful(run.points), status=status, step=at.spent.steps
    )
    last = run.points[-1].spent
    yield _break(blank, "steps", bound, run.points)
    yield replace(blank, metric="trial_flops", value=last.flops, step=last.steps)
    yield replace(blank, metric="trial_wall_s", value=run.wall_s, step=last.steps)


def _whole(search: Search, blank: Record, bound: Bound, told: Sequence[Told]) -> Iterator[Record]:
    counted = [trial for trial in told if trial.outcome != "failed"]
    first = next((i for i, trial in enumerate(counted, start=1) if bound.broke(trial.points)), None)
    status = "censored" if first is None else "ok"
    yield replace(blank, metric="search_trials_to_break", value=float(first or len(counted)), status=status)
    wall, inside = sum(trial.wall_s for trial in counted), sum(trial.inside_s for trial in counted)
    yield replace(blank, metric="search_flops", value=sum(trial.points[-1].spent.flops for trial in counted))
    yield replace(blank, metric="search_wall_s", value=wall)
    yield replace(blank, metric="outside_share", value=1 - inside / wall if wall else 0.0)


def _rerun(
    search: Search, blank: Record, bound: Bound, setting: Setting, number: int, tried: Tried, more: dict[str, Any]
) -> Iterator[Record]:
    blank = _attacked(search, blank, search.again(setting, "rerun", number), more)
    blank = replace(blank, attack="chosen", attack_seed=number, split="heldout")
    for row in tried.rows:
        yield replace(blank, **row)
    at = bound.worst(tried.points)
    yield replace(blank, metric="bounded_harmful_score", value=bound.harmful(tried.points), step=at.spent.steps)
    for axis in COSTS:
        row = _break(blank, axis, bound, tried.points)
        lost = tried.outcome == "diverged" and row.status == "censored"
        yield replace(row, value=None, status="diverged") if lost else row


def _break(blank: Record, axis: str, bound: Bound, points: Sequence[Point]) -> Record:
    broke = bound.broke(points)
    at = broke or points[-1]
    status = "ok" if broke else "censored"
    return replace(blank, metric=COSTS[axis], value=float(getattr(at.spent, axis)), status=status, step=at.spent.steps)


def _attacked(search: Search, blank: Record, setting: Setting, more: Mapping[str, Any]) -> Record:
    attack = search.finetune(setting)
    rank = {} if attack.lora is None else {"lora_r": attack.lora.r}
    return replace(
        blank,
        adapter_mode=attack.adapter_mode,
        attack_params={**attack_params(attack), **rank, **more},
        harmful_samples=attack.harmful_samples,
        poison_ratio=attack.poison_ratio,
    )
