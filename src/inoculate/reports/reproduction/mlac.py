"""The claims about MLAC: Henderson et al., arXiv:2211.14946."""

from __future__ import annotations

from collections.abc import Sequence

from inoculate.core.records import Record
from inoculate.evals.statistics import Estimate
from inoculate.reports.few_shot import ADVERSARIAL, MLAC, RANDOM, TUNED, Study
from inoculate.reports.reproduction.claims import Above, Below, Claim, Finding, Rule, Within
from inoculate.reports.reproduction.measures import arm, study
from inoculate.reports.runs import Arm

_PAPER = "MLAC"
_NEAR = 0.03
"""How far an accuracy may lie from another and still be near it."""
_VECTORS = "world of vectors, MLP, 5 seeds, held-out accuracy"
_TEXTS = "biographies, BERT of 2 layers, 5 seeds, held-out accuracy"


def _against(found: Study, ours: Arm | None, other: Arm | None, task: str, rule: Rule) -> list[Finding]:
    """The difference in accuracy at every n, paired by seed."""
    if ours is None or other is None:
        return [Finding(f"{task}: no such starting points", None, rule)]
    return [
        Finding(f"n = {n}", found.difference(ours, other, task, n), rule)
        for n in found.sizes(task)
        if found.difference(ours, other, task, n)
    ]


def _near_random(records: Sequence[Record]) -> list[Finding]:
    found = study(records)
    return _against(found, arm(found, MLAC), arm(found, RANDOM), "restricted", Within(_NEAR)) if found else []


def _adversarial_fails(records: Sequence[Record]) -> list[Finding]:
    found = study(records)
    if found is None:
        return []
    published = arm(found, ADVERSARIAL, calibrated=False)
    return _against(found, published, arm(found, RANDOM), "restricted", Above(_NEAR))


def _more_steps(records: Sequence[Record]) -> list[Finding]:
    found = study(records)
    if found is None:
        return []
    fast = {"adversary_learning_rate": 0.01}
    none = arm(found, MLAC, inner_steps=0, **fast)
    return [
        finding._replace(label=f"K = {steps}, {finding.label}")
        for steps in (4, 8, 16)
        for finding in _against(found, arm(found, MLAC, inner_steps=steps, **fast), none, "restricted", Below())
    ]


def _desired_better(records: Sequence[Record]) -> list[Finding]:
    found = study(records)
    return _against(found, arm(found, MLAC), arm(found, TUNED), "desired", Above()) if found else []


def _pronouns(records: Sequence[Record]) -> list[Finding]:
    """The world with pronouns left in, from which a random encoder learns the restricted label."""
    found = study([row for row in records if row.base_params.get("world", {}).get("pronouns")])
    ours = arm(found, RANDOM) if found else None
    value: Estimate | None = found.mean(ours, "restricted", 10) if found and ours else None
    return [Finding("accuracy at n = 10", value, Above(0.9))]


MLAC_CLAIMS = (
    Claim(
        _PAPER,
        "Restricted accuracy near random initialization's at every n",
        "about .55 to .58 at n = 20 to 200, flat (figure)",
        "mlac/few-shot",
        f"MLAC (K = 8) − random; {_VECTORS}",
        _near_random,
    ),
    Claim(
        _PAPER,
        "Restricted accuracy near random initialization's at every n",
        "about .55 to .58 at n = 20 to 200, flat (figure)",
        "mlac/biographies",
        f"MLAC (K = 4) − random; {_TEXTS}",
        _near_random,
    ),
    Claim(
        _PAPER,
        "Adversarial training does not achieve it",
        "adversarial training does not lower restricted accuracy (figure)",
        "mlac/few-shot",
        f"uncalibrated, slow head − random; {_VECTORS}",
        _adversarial_fails,
    ),
    Claim(
        _PAPER,
        "Adversarial training does not achieve it",
        "adversarial training does not lower restricted accuracy (figure)",
        "mlac/biographies",
        f"uncalibrated, slow head − random; {_TEXTS}",
        _adversarial_fails,
    ),
    Claim(
        _PAPER,
        "More inner steps help; K = 0 is adversarial training",
        "K = 16 in training holds against attacks of up to 1,000 steps",
        "mlac/inner-steps",
        f"MLAC − K = 0 at equal steps, both with a fast head; {_VECTORS}. K = 0 is adversarial training bit for bit",
        _more_steps,
    ),
    Claim(
        _PAPER,
        "Few-shot on the desired task better than the tuned model's",
        "better than BERT's (figure)",
        "mlac/few-shot",
        f"MLAC − tuned on the desired task; {_VECTORS}",
        _desired_better,
    ),
    Claim(
        _PAPER,
        "With pronouns left in, 10 examples suffice for a random model",
        "> .90",
        "mlac/pronouns",
        "random encoder, biographies with pronouns, 5 seeds",
        _pronouns,
    ),
    Claim(
        _PAPER,
        "All of it, on Bias in Bios with BERT-tiny and 50,000 meta-steps",
        "figures 2 to 4",
        "paper/mlac-bert-tiny",
        "the published setting",
    ),
)
