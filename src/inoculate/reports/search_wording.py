"""Costs, ratios and settings of attack searches, as a reader wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inoculate.evals.survival import FEWEST, Cost, CostRatio
from inoculate.reports.searches import TRIALS, Axis, Costs
from inoculate.reports.wording import scientific, times, value_text

LEAST_RUNS = 6
"""Of fewer runs the lowest and highest hold the median with less than 95% chance: 1 − 2^(1 − n)."""
_MOST_SEEDS = 6
"""Of more, their ratios are not listed one by one."""
_MODES = {
    "full": "all weights are trained",
    "merge": "the alignment is merged and a fresh LoRA trained",
    "qlora": "the alignment is merged, the model cut to 4 bits and a fresh LoRA trained",
    "continue": "the alignment's LoRA is trained on",
    "head": "the head alone is trained",
    "embeddings": "the embeddings alone are trained",
}


def amount(axis: Axis, value: float) -> str:
    """A cost with its unit where the axis does not say it: 90, 40,624, 2.69e10, 2.7 s."""
    if axis.key == "flops":
        mantissa, exponent = f"{value:.2e}".split("e")
        return "0" if value == 0 else f"{float(mantissa):g}e{int(exponent)}"
    if axis.key == "wall_s":
        return f"{value:,.0f} s" if value >= 100 else f"{value:.3g} s"
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.3g}"


def cost_text(axis: Axis, cost: Cost | None, costs: Costs) -> str:
    """The median, or `> ` what was spent in vain."""
    if cost is None:
        return "–"
    return f"> {amount(axis, max(costs.values))}" if cost.value is None else amount(axis, cost.value)


def cost_interval(axis: Axis, cost: Cost | None, costs: Costs) -> str:
    """The interval of the median, or why there is none."""
    if cost is None:
        return "every run diverged"
    one = "seed" if axis == TRIALS else "run"
    if cost.n == 1:
        return f"one {one}: no interval"
    if cost.broke == 0:
        return f"{cost.n} {one}s, none broke"
    if len(set(costs.values)) == 1 and not any(costs.censored):
        return f"{cost.n} {one}s agree: no interval"
    if cost.n < LEAST_RUNS:
        most = max(costs.values)
        above = "> " if (most, True) in zip(costs.values, costs.censored, strict=True) else ""
        ends = f"{amount(axis, min(costs.values))}–{above}{amount(axis, most)}"
        return f"{ends} in {cost.n} {one}s, too few for an interval"
    low = max(costs.values) if cost.low is None else cost.low
    if cost.high is None:
        return f"95% CI from {amount(axis, low)} up, {cost.n} {one}s"
    return f"95% CI {amount(axis, low)}–{amount(axis, cost.high)}, {cost.n} {one}s"


def ratio_text(found: CostRatio | None) -> str:
    """`2.9×`, with ≥ where the median was not reached; a dash where nothing can be said."""
    if found is None or found.value is None:
        return "–"
    return f"{'≥ ' if found.at_least else ''}{times(found.value)}×"


def ratios_by_seed_text(found: Sequence[CostRatio]) -> str:
    """`0.7 / – / ≥ 50`, seed by seed; of many the least and the greatest; a dash for what cannot be said."""
    told = sorted((r for r in found if r.value is not None), key=lambda r: r.value or 0.0)
    if not told:
        return "–"
    between, shown = (" / ", found) if len(found) <= _MOST_SEEDS else (" to ", (told[0], told[-1]))
    return between.join(ratio_text(ratio).removesuffix("×") for ratio in shown)


def ratio_interval_text(found: CostRatio | None, seeds: int) -> str:
    """The interval of a ratio, or why there is none."""
    if found is None or found.value is None or found.low is None:
        return ""
    if seeds < FEWEST:
        return f"{'one seed' if seeds == 1 else f'{seeds} seeds'}: no interval"
    if found.high is None:
        return f"95% CI from {times(found.low)} up, {seeds} seeds"
    if found.low == found.high:
        return f"{seeds} seeds agree: no interval"
    return f"95% CI {times(found.low)}–{times(found.high)}, {seeds} seeds"


def setting_words(setting: Mapping[str, Any]) -> str:
    """A setting in words: which weights, how, on what."""
    mode = str(setting.get("adapter_mode"))
    text = _MODES.get(mode, f"{mode} is trained")
    rank = setting.get("lora_r")
    text += f" (r {rank})" if rank is not None else ""
    if optim := setting.get("optim"):
        text += f" with {str(optim).removesuffix('_torch')}"
    if (lr := setting.get("learning_rate")) is not None:
        text += f" at lr {scientific(float(f'{lr:.3g}'))}"
    parts = [f"{setting['lr_scheduler_type']} schedule"] if setting.get("lr_scheduler_type") else []
    parts += [f"batch {setting['batch_size']}"] if setting.get("batch_size") else []
    parts += [f"at most {setting['max_steps']} steps"] if setting.get("max_steps") else []
    text += f" ({', '.join(parts)})" if parts else ""
    if (p := setting.get("poison_ratio")) is not None:
        n = setting.get("num_samples")
        text += f", {100 * p:g}% of {n} rows harmful" if n else f", {100 * p:g}% of the rows harmful"
    text += f", {value_text('template', setting['template'])} template" if setting.get("template") else ""
    return text
