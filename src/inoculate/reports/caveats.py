"""What a reader must know before and beside the numbers."""

from __future__ import annotations

from itertools import pairwise

from inoculate.reports.runs import Grid, harmful
from inoculate.reports.store_view import StoreView
from inoculate.reports.wording import count, listed, number


def warnings(view: StoreView, grid: Grid) -> list[str]:
    """What a reader must know before the numbers: stages that did not end well, arms that are not alike."""
    warnings = []
    for status in ("failed", "diverged", "skipped", "missing"):
        stages = [stage for stage in view.stages if stage.status == status]
        if stages:
            why = "; ".join(f"{stage.label}{': ' + stage.error if stage.error else ''}" for stage in stages[:5])
            more = f"; and {len(stages) - 5} more" if len(stages) > 5 else ""
            warnings.append(f"{count(len(stages), 'stage')} {status}: {why}{more}.")
    if view.unfinished:
        warnings.append(f"{count(len(view.unfinished), 'stage')} unfinished: the recipe is running, or was cut off.")
    lengths = {arm.label: arm.params["align_steps"] for arm in grid.arms if arm.params.get("align_steps")}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{label} {steps}" for label, steps in lengths.items())
        warnings.append(f"The defenses were aligned for different numbers of steps ({told}); length alone hardens.")
    if len({arm.defense for arm in grid.arms}) > 1 and not any(arm.defense == "sft" for arm in grid.arms):
        warnings.append(f"There is no SFT arm: ratios are to {grid.arms[0].label}.")
    return warnings


def how_breaks_were_read(grid: Grid, judge: str) -> str:
    """The note under steps to break: what counts as broken, and how finely that was watched."""
    thresholds = {broke.threshold for run in grid.attacks if (broke := run.breaks.get(judge)) and broke.threshold}
    gaps = {
        later - earlier
        for run in grid.attacks
        if harmful(run.setting)
        for earlier, later in pairwise(sorted(run.curve("harmful_score", judge)))
    }
    text = "A model counts as broken at the first measured step whose harmful score is above "
    text += listed([number(t) for t in sorted(thresholds)]) if thresholds else "the recipe's threshold"
    if gaps:
        often = number(min(gaps)) if len(gaps) == 1 else f"{number(min(gaps))} to {number(max(gaps))}"
        text += f"; it was measured every {often} steps, so a break is known to within that"
    return text + ". “>” means: not broken within that many steps. Ratios are paired by seed, geometric means."
