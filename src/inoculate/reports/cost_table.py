"""What a step of each defense costs, in proportion to SFT's, beside what was published."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from inoculate.core.hashing import canonical
from inoculate.core.records import Record
from inoculate.reports.gather import is_cost, settled, tell_apart
from inoculate.reports.tables import Cell, Column, Table
from inoculate.reports.wording import defense_name, listed, setting_text, times, visible

NOTHING = Cell("–")
_REFERENCE = "sft"
_METRICS = {
    "step_s": ("Seconds per step", 1.0),
    "peak_memory_bytes": ("Peak memory (MiB)", 2.0**20),
    "step_flops": ("GFLOPs per step", 1e9),
}
"""Metric → title, unit."""


class Published(NamedTuple):
    """Of an alignment of Llama-2-7B on one 80 GB GPU: Huang et al., arXiv:2409.01586, system table."""

    hours: float
    gb: float | None
    inferred: bool = False
    """The memory follows from differences that were quoted, not from the table."""


PUBLISHED = {
    "sft": Published(0.54, 49.4, inferred=True),
    "vaccine": Published(1.06, None),
    "booster": Published(1.86, 57.86),
    "repnoise": Published(2.69, 72.5, inferred=True),
}


@dataclass(frozen=True)
class CostStudy:
    """Defenses measured alike on one model."""

    title: str
    labels: Mapping[str, str]
    """Arm → label, in the records' order."""
    defenses: Mapping[str, str]
    """Arm → name of its defense."""
    values: Mapping[tuple[str, str], Mapping[int | None, float]]
    """(arm, metric) → seed → value."""
    lost: Mapping[str, str]
    """Arm → how it ended, if it was not measured under some seed."""
    how: Mapping[str, Any]
    """Instruments."""

    def value(self, arm: str, metric: str) -> float | None:
        """The median over seeds."""
        found = self.values.get((arm, metric))
        return statistics.median(found.values()) if found else None

    def ratio(self, arm: str, metric: str) -> float | None:
        """Over SFT, the median over seeds: of seconds as it was measured, step beside step; else between stages of one
        seed. None without a pair, or where SFT's is zero.
        """
        if metric == "step_s":
            return self.value(arm, "step_ratio")
        reference = next((other for other, name in self.defenses.items() if name == _REFERENCE), None)
        ours, theirs = self.values.get((arm, metric), {}), self.values.get((reference or "", metric), {})
        pairs = [ours[seed] / theirs[seed] for seed in ours if theirs.get(seed)]
        return statistics.median(pairs) if pairs else None


def cost_studies(records: Iterable[Record]) -> tuple[CostStudy, ...]:
    """One study for each model and way of measuring; none where nothing of the kind was measured."""
    by_model: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if is_cost(record) and record.status != "failed":  # a failed stage is among the report's warnings
            by_model[canonical([record.base, record.base_seed, _shared(record)])].append(record)
    titles = _titles([rows[0] for rows in by_model.values()])
    return tuple(_study(title, rows) for title, rows in zip(titles, by_model.values(), strict=True))


def cost_table(study: CostStudy) -> Table:
    """Defenses by what a step of theirs costs."""
    heads = [Column("Defense", numeric=False)]
    for title, _ in _METRICS.values():
        heads += [Column(title), Column("× SFT")]
    heads += [Column("Published time, × SFT"), Column("Published memory, × SFT")]
    rows = []
    for arm, label in study.labels.items():
        cells = [cell for metric in _METRICS for cell in _measured(study, arm, metric)]
        detail = study.lost.get(arm, "")
        rows.append([Cell(label, detail), *cells, *_published(study.defenses[arm])])
    return Table(f"Cost of one step: {study.title}", heads, rows, _note(study))


def cost_finding(study: CostStudy) -> str:
    """The ratios of seconds, in one sentence."""
    parts = [
        f"{label} {times(ratio)}"
        for arm, label in study.labels.items()
        if study.defenses[arm] != _REFERENCE and (ratio := study.ratio(arm, "step_s")) is not None
    ]
    return f"{study.title}: a step took, in SFT's steps, {listed(parts)}." if parts else ""


def _study(title: str, rows: Sequence[Record]) -> CostStudy:
    arms: dict[str, Record] = {}
    values: dict[tuple[str, str], dict[int | None, float]] = defaultdict(dict)
    lost = {}
    for row in rows:
        arm = canonical([row.defense, settled(row.defense_params)])
        arms.setdefault(arm, row)
        if row.value is None:
            lost[arm] = row.status
        else:
            values[arm, row.metric][row.defense_seed] = row.value
    how = next((row.base_params for row in rows if "clock" in row.base_params), {})
    return CostStudy(title, _labels(arms), {arm: row.defense for arm, row in arms.items()}, dict(values), lost, how)


def _labels(arms: Mapping[str, Record]) -> dict[str, str]:
    """Arm → its defense's name, with the settings in which it differs from others of that name."""
    labels = {}
    for arm, row in arms.items():
        alike = [settled(other.defense_params) for other in arms.values() if other.defense == row.defense]
        telling = tell_apart(alike, sorted({name for params in alike for name in params}))
        told = [setting_text(name, settled(row.defense_params).get(name)) for name in telling]
        labels[arm] = " ".join([defense_name(row.defense), *told])
    return labels


def _shared(record: Record) -> dict[str, Any]:
    return {**record.base_params, "adapter_mode": record.adapter_mode}


def _titles(firsts: Sequence[Record]) -> list[str]:
    """What each model is called: its name, and the settings that tell it from others of that name."""
    titles = []
    for row in firsts:
        alike = [_flat(other) for other in firsts if other.base == row.base]
        telling = tell_apart(alike, sorted({name for params in alike for name in params}))
        told = [setting_text(name, _flat(row).get(name)) for name in telling]
        titles.append(", ".join([visible(row.base), *told]))
    return titles


def _flat(record: Record) -> dict[str, Any]:
    flat = {"base_seed": record.base_seed}
    for name, value in _shared(record).items():
        flat |= {f"{name} {key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _measured(study: CostStudy, arm: str, metric: str) -> tuple[Cell, Cell]:
    value, ratio, (_, unit) = study.value(arm, metric), study.ratio(arm, metric), _METRICS[metric]
    shown = NOTHING if value is None else Cell(_three_digits(value / unit), value=value)
    return shown, NOTHING if ratio is None else Cell(f"{ratio:.2f}", value=ratio)


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _published(defense: str) -> tuple[Cell, Cell]:
    found, sft = PUBLISHED.get(defense), PUBLISHED[_REFERENCE]
    if found is None:
        return NOTHING, NOTHING
    time = Cell(f"{found.hours / sft.hours:.2f}", f"{found.hours:g} h", found.hours)
    if found.gb is None or sft.gb is None:
        return time, NOTHING
    about = "about " if found.inferred else ""
    return time, Cell(f"{found.gb / sft.gb:.2f}", f"{about}{found.gb:g} GB", found.gb)


def _note(study: CostStudy) -> str:
    how = study.how
    training, lora = how.get("training", {}), how.get("lora")
    rows = training.get("per_device_train_batch_size", 0) * training.get("gradient_accumulation_steps", 1)
    weights = f"LoRA of rank {lora['r']}" if lora else "All weights trained"
    seeds = len({seed for found in study.values.values() for seed in found})
    over = f", medians over {seeds} seeds" if seeds > 1 else ""
    text = f"{weights}, {rows} rows a step and role of at most {how.get('max_length')} tokens, {how.get('dtype')} "
    text += f"weights, one thread{over}. Seconds: {how.get('clock')}, and over a step of SFT made just before each; "
    text += "how far SFT's own ratio is from 1 is the noise. "
    text += f"Memory: peak over the process before the model was loaded ({how.get('memory')}). Operations: matrix "
    text += "products and attention. Published: an alignment of Llama-2-7B on one 80 GB GPU (arXiv:2409.01586), hours "
    return text + "and memory in all; SFT's and RepNoise's memory follows from differences that were quoted."
