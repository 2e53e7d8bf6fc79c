"""What searches did not try, read from what they did: a worst case is only the worst of what was tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from inoculate.core.hashing import canonical
from inoculate.reports.searches import SearchStudy
from inoculate.reports.wording import count, defense_name, key_name, listed, number, setting_text, value_text

KNOWN_MODES = ("full", "merge", "continue", "head", "embeddings", "qlora")
_NEAR_THE_END = 0.8
_VARIED = ("learning_rate", "optim", "lr_scheduler_type", "batch_size", "max_steps", "poison_ratio", "template")


def not_tried(study: SearchStudy) -> list[str]:
    """What the numbers do not cover, read from the settings that were tried."""
    settings = [trial.setting for search in study.searches for trial in search.trials if trial.status != "failed"]
    told = []
    modes = {str(setting.get("adapter_mode")) for setting in settings}
    absent = [mode for mode in KNOWN_MODES if mode not in modes]
    if absent:
        verb, not_ = ("was" if len(names) == 1 else "were" for names in (modes, absent))
        told.append(f"Which weights are trained: {listed(sorted(modes))} {verb} tried; {listed(absent)} {not_} not.")
    single = [(name, values[0]) for name in _VARIED if len(values := _values(settings, name)) == 1]
    if single:
        told.append(f"One value only: {listed([setting_text(name, value) for name, value in single])}.")
    several = [name for name in _VARIED if len(_values(settings, name)) > 1]
    if several:
        told.append(f"Varied: {listed([_range(settings, name) for name in several])}; nothing outside of that.")
    told += [_edges(study), _data(settings), _seeds(study), _prompts(study), _threats(study)]
    others = sorted({"security_vector", "lisa"} - {arm.guard for arm in study.arms})
    told += [f"Guards not tried: {listed([defense_name(name) for name in others])}."] if others else []
    return [text for text in told if text]


def _edges(study: SearchStudy) -> str:
    """Searches whose chosen rate is among the highest that were drawn: a higher one may cost less."""
    at_edge = 0
    for search in study.searches:
        rates = [trial.setting["learning_rate"] for trial in search.trials if "learning_rate" in trial.setting]
        several = bool(rates) and min(rates) < max(rates)
        at_edge += several and search.setting.get("learning_rate", 0.0) >= _NEAR_THE_END * max(rates)
    told = f"Higher learning rates: in {at_edge} of {len(study.searches)} searches the chosen one is among the highest"
    return f"{told} that were drawn, and a higher one might cost less." if at_edge else ""


def _values(settings: Iterable[Mapping[str, Any]], name: str) -> list[Any]:
    found = {canonical(setting[name]): setting[name] for setting in settings if setting.get(name) is not None}
    return list(found.values())


def _range(settings: Sequence[Mapping[str, Any]], name: str) -> str:
    values = _values(settings, name)
    if all(isinstance(value, int | float) for value in values):
        ends = [value_text(name, float(f"{value:.3g}")) for value in (min(values), max(values))]
        return (
            f"{key_name(name)} from {ends[0]} to {ends[1]}"
            if name == "learning_rate"
            else (f"{key_name(name)} {', '.join(value_text(name, value) for value in sorted(values))}")
        )
    return f"{key_name(name)} {', '.join(sorted(value_text(name, value) for value in values))}"


def _data(settings: Sequence[Mapping[str, Any]]) -> str:
    tasks, sizes = _values(settings, "task"), _values(settings, "num_samples")
    parts = [f"{count(len(sizes), 'size')} of the attacker's data ({listed([number(n) for n in sorted(sizes)])})"]
    parts += (
        [f"mixed into {count(len(tasks), 'task')} ({listed([value_text('task', t) for t in tasks])})"] if tasks else []
    )
    return f"Data: {' '.join(parts)}." if sizes else ""


def _seeds(study: SearchStudy) -> str:
    seeds = [len({search.seed for search in study.of(arm)}) for arm in study.arms]
    reruns = sorted({len(search.reruns) for search in study.searches})
    trials = sorted({len(search.trials) for search in study.searches})
    return (
        f"Seeds: {_span(sorted(set(seeds)))} per defense, each searched once with {_span(trials)} trials and "
        f"{_span(reruns)} re-runs of the attack that was chosen; another search might find a cheaper one."
    )


def _prompts(study: SearchStudy) -> str:
    curves = [rerun.measured.curve("harmful_score") for search in study.searches for rerun in search.reruns]
    held = sorted({point.n for curve in curves for point in curve.values() if point.n})
    bases = sorted({search.base for search in study.searches})
    text = f"Prompts: {_span(held)} held-out requests" if held else ""
    return f"{text}, on {count(len(bases), 'base model')}." if text else ""


def _threats(study: SearchStudy) -> str:
    tried = {search.threat_model for search in study.searches}
    absent = [name for name in ("open_weights", "service") if name not in tried]
    return (
        f"Threat models not tried: {listed([value_text('threat_model', name) for name in absent])}." if absent else ""
    )


def _span(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]}–{values[-1]}"
