"""Charts of a few-shot study: accuracy against n, a panel per task and a line per starting point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from inoculate.reports.charts import Chart
from inoculate.reports.few_shot import ADVERSARIAL, MLAC, PRETRAINED, RANDOM, TUNED, Seed, Study
from inoculate.reports.panels import GRAY, PALETTE, REFERENCE, TEXT, Look, panels
from inoculate.reports.runs import Arm
from inoculate.reports.wording import count


def few_shot_charts(study: Study, number: int = 1) -> list[Chart]:
    """Accuracy against n, a panel per task; more defended starts than colors get charts of their own."""
    tasks = [task for task in study.tasks() if len(study.sizes(task)) > 1]
    undefended = [arm for arm in study.arms if arm.defense not in (ADVERSARIAL, MLAC)]
    defended = study.of(ADVERSARIAL, MLAC)
    # More lines than colors would be alike; nothing is left out, so they get another chart.
    parts = [defended[i : i + len(PALETTE)] for i in range(0, len(defended), len(PALETTE))] or [[]]
    made = []
    for i, part in enumerate(parts, start=1):
        rows = [row for task in tasks for arm in (*undefended, *part) for row in _rows(study, arm, task)]
        if not rows:
            continue
        of = f" ({i} of {len(parts)})" if len(parts) > 1 else ""
        seeds = {row["seed"] for row in rows if row["of"] == "seed"}
        caption = "Held-out rows. "
        caption += (
            f"Thick: mean over seeds. Thin: each of {count(len(seeds), 'seed')}." if len(seeds) > 1 else "One seed."
        )
        chance = {f"{task.capitalize()} task": [1 / study.classes[task]] for task in tasks if study.classes.get(task)}
        caption += " The gray line is chance." if chance else ""
        hues = _hues(undefended, part)
        dashed = [arm.label for arm in undefended if arm.defense in (RANDOM, TUNED)]
        levels = [row["y"] for row in rows] + [level for levels in chance.values() for level in levels]
        spec = panels(
            rows,
            x="Samples n of the attacker",
            y="Accuracy",
            arms=list(hues),
            rate=True,
            thresholds=chance,
            key="harmful_samples",
            look=Look(
                "Starting point", "Task", "Rows", hues, dashed, log=True, lowest=math.floor(10 * min(levels)) / 10
            ),
        )
        name = f"few_shot_{number}" + (f"_{i}" if len(parts) > 1 else "")
        made.append(Chart(name, f"Accuracy by samples{of}", caption, len({row["panel"] for row in rows}), spec))
    return made


def _rows(study: Study, arm: Arm, task: str) -> list[dict[str, Any]]:
    panel, n_rows = f"{task.capitalize()} task", max(study.rows["heldout"], default=None)
    rows = []
    for n in study.sizes(task):
        blank = {"panel": panel, "arm": arm.label, "x": n}
        seeds = study.seeds(arm, task, n)
        rows += [
            {**blank, "seed": _seed_text(seed), "y": round(value, 4), "n": n_rows, "of": "seed"}
            for seed, value in seeds.items()
        ]
        if found := study.mean(arm, task, n):
            rows.append({**blank, "seed": "mean", "y": round(found.value, 4), "of": "mean"})
    return rows


def _hues(undefended: Sequence[Arm], defended: Sequence[Arm]) -> dict[str, str]:
    """Random gray, pretrained dark, tuned as SFT elsewhere; the palette for those that defend."""
    fixed = {RANDOM: GRAY, PRETRAINED: TEXT, TUNED: REFERENCE}
    hues = {arm.label: fixed.get(arm.defense, GRAY) for arm in undefended}
    return hues | {arm.label: hue for arm, hue in zip(defended, PALETTE, strict=False)}


def _seed_text(seed: Seed) -> str:
    return "/".join(str(part) for part in dict.fromkeys(part for part in seed if part is not None)) or "–"
