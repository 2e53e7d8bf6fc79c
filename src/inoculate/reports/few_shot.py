"""Few-shot studies (MLAC's protocol): what an attacker learns from n samples of a task, by starting point.

A seed's accuracy is the mean over the re-runs of the best setting that its search found; an interval is Student's over
seeds. The accuracy on held-out rows comes first; the published one, the best seen on validation rows, stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from inoculate.evals.statistics import Estimate, mean_interval, paired_difference
from inoculate.reports.runs import Arm

TASKS = ("restricted", "desired", "unrelated")
RANDOM, PRETRAINED, TUNED, ADVERSARIAL, MLAC = "random", "none", "sft", "adversarial", "mlac"

Seed: TypeAlias = tuple[int | None, int | None]
"""Of the body and of the start."""
Key: TypeAlias = tuple[Arm, str, int]
"""Starting point, task, n."""


@dataclass(frozen=True)
class Study:
    """One world and body under one attacker."""

    title: str
    arms: tuple[Arm, ...]
    """Starting points: random, pretrained, tuned, adversarial training, MLAC."""
    scores: Mapping[tuple[str, Key], Mapping[Seed, float]]
    """Split and key → seed → mean accuracy over re-runs."""
    lost: Mapping[Key, tuple[int, int]]
    """Re-runs, and whole searches, that diverged before anything was measured."""
    own: Mapping[tuple[str, Arm], Mapping[Seed, float]]
    """Metric of the start itself (`desired_accuracy`, `train_wall_s`) → seed → value."""
    classes: Mapping[str, int]
    rows: Mapping[str, tuple[int, ...]]
    """Split → numbers of rows that accuracies rest on."""
    searches: int
    most_trials: int
    """Trials of the longest search."""
    reruns: tuple[int, ...]
    """Re-runs per search."""
    merged: int
    """Cells in which a seed has several searches."""

    def tasks(self) -> tuple[str, ...]:
        """The tasks that were attacked."""
        return tuple(task for task in TASKS if self.sizes(task))

    def sizes(self, task: str) -> list[int]:
        """The n that were tried."""
        return sorted({n for _, (_, of, n) in self.scores if of == task})

    def of(self, *defenses: str) -> list[Arm]:
        """The starting points of these defenses."""
        return [arm for arm in self.arms if arm.defense in defenses]

    def seeds(self, arm: Arm, task: str, n: int, split: str = "heldout") -> Mapping[Seed, float]:
        """Seed → mean accuracy over its re-runs."""
        return self.scores.get((split, (arm, task, n)), {})

    def mean(self, arm: Arm, task: str, n: int, split: str = "heldout") -> Estimate | None:
        """Mean over seeds; None where nothing was measured."""
        return _estimate(self.seeds(arm, task, n, split))

    def difference(self, arm: Arm, other: Arm, task: str, n: int) -> Estimate | None:
        """Accuracy minus the other's on held-out rows, over the seeds that both have; None without one."""
        a, b = self.seeds(arm, task, n), self.seeds(other, task, n)
        both = [seed for seed in a if seed in b]
        return paired_difference([a[seed] for seed in both], [b[seed] for seed in both]) if both else None

    def start(self, arm: Arm, metric: str) -> Estimate | None:
        """The mean of what was measured of the start itself."""
        return _estimate(self.own.get((metric, arm), {}))

    def tuned(self, arm: Arm) -> Arm | None:
        """The start that was only tuned, trained as long and with the same learning rate where there are several."""
        alike = [tuned for tuned in self.of(TUNED) if trained_alike(tuned, arm)]
        return next(iter(alike or self.of(TUNED)), None)

    def needed(self, arm: Arm, task: str, level: float) -> tuple[int, bool] | None:
        """The first n that reaches an accuracy; or the greatest, and True, if none does."""
        tried = {n: found.value for n in self.sizes(task) if (found := self.mean(arm, task, n))}
        reached = (n for n, value in tried.items() if value >= level - 1e-9)  # a mean of seeds may be off by rounding
        return (next(reached, 0) or max(tried), max(tried.values()) < level - 1e-9) if tried else None


def trained_alike(arm: Arm, other: Arm) -> bool:
    """Whether two starts were trained with the same learning rate and number of steps."""
    return all(arm.params.get(name) == other.params.get(name) for name in ("learning_rate", "align_steps"))


def _estimate(seeds: Mapping[Seed, float]) -> Estimate | None:
    return mean_interval(list(seeds.values())) if seeds else None
