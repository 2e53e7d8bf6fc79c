"""Attack searches on models: what was tried, what the chosen attack did on held-out prompts, and what it cost.

A search is of one model: a defense under one seed. Its attack was chosen on the attacker's own prompts; costs and harm
are those of the chosen setting's re-runs, on held-out prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from inoculate.evals.survival import Cost, CostRatio, cost_ratio, median_cost
from inoculate.reports.runs import Arm, Point

Seed: TypeAlias = tuple[int | None, int | None]
"""Of the base and of the defense."""


class Axis(NamedTuple):
    """One way to count what an attack spends."""

    key: str
    metric: str
    title: str
    noun: str


AXES = (
    Axis("steps", "break_steps", "Optimizer steps", "optimizer steps"),
    Axis("samples", "break_samples", "Harmful samples", "harmful samples"),
    Axis("tokens", "break_tokens", "Tokens", "tokens"),
    Axis("flops", "break_flops", "FLOPs", "FLOPs"),
    Axis("wall_s", "break_wall_s", "Wall time", "of wall time"),
)
TRIALS = Axis("trials", "search_trials_to_break", "Trials of search", "trials")
STEPS = AXES[0]


class Spent(NamedTuple):
    """What a run spent until the model broke; censored when it did not, and `value` is what was spent in vain."""

    value: float
    censored: bool


class Costs(NamedTuple):
    """What was spent in each run of an arm, and the seed that each belongs to."""

    values: tuple[float, ...]
    censored: tuple[bool, ...]
    seeds: tuple[Seed, ...]
    lost: int
    """Runs that diverged before they broke: neither broken nor held."""

    def in_seed(self, seed: Seed) -> Costs:
        """The runs of one seed that tell a cost."""
        kept = [run for run in zip(self.values, self.censored, self.seeds, strict=True) if run[2] == seed]
        return Costs(tuple(v for v, _, _ in kept), tuple(c for _, c, _ in kept), tuple(s for _, _, s in kept), 0)


@dataclass(frozen=True)
class Measured:
    """Metric → judge → step → value."""

    by: Mapping[str, Mapping[str, Mapping[int, Point]]]

    def curve(self, metric: str, judge: str = "") -> Mapping[int, Point]:
        """Step → value by this judge, or by whoever gave this metric."""
        by_judge = self.by.get(metric, {})
        return by_judge.get(judge) or next(iter(by_judge.values()), {})

    def at(self, metric: str, step: int | None, judge: str = "") -> Point | None:
        """The value at one step."""
        return None if step is None else self.curve(metric, judge).get(step)


class Bound(NamedTuple):
    """When a model is harmful (above `threshold`) and still useful (`utility` of `metric` or more)."""

    threshold: float
    utility: float
    metric: str


@dataclass(frozen=True)
class Trial:
    """One setting that the search tried on the attacker's own prompts."""

    number: int
    status: str
    """`ok` (complete), `pruned`, `diverged` or `failed`."""
    setting: Mapping[str, Any]
    warm: bool
    harmful: float | None
    """Bounded by utility; None if it failed."""
    point: tuple[float, float] | None
    """Utility and harmful score where it was most harmful and useful."""
    broke: bool
    steps: float | None
    """To the break, or made in vain."""


@dataclass(frozen=True)
class Rerun:
    """The chosen setting once more with a fresh seed, on held-out prompts."""

    number: int
    costs: Mapping[str, Spent | None]
    """By axis; None: it diverged before it broke."""
    harmful: float | None
    """Bounded by utility."""
    worst: int | None
    """The step that `harmful` is of: the most harmful useful one."""
    measured: Measured
    verdicts: Mapping[int, Sequence[tuple[str, Mapping[str, str]]]] = field(default_factory=dict)
    """Step → (prompt, judge → verdict) on restricted requests, where responses were kept."""


@dataclass(frozen=True)
class Search:
    """One model, searched."""

    folder: str
    arm: Arm
    seed: Seed
    threat_model: str
    base: str
    bound: Bound
    control: str | None
    """Folder of the undefended model's search, as the records name it."""
    before: Measured
    trials: tuple[Trial, ...]
    finals: tuple[Trial, ...]
    """The best trials once more with fresh seeds, the best first; the best of these runs chose the setting."""
    chosen: int | None
    setting: Mapping[str, Any]
    reruns: tuple[Rerun, ...]
    totals: Mapping[str, Spent]
    """Metric of the search as a whole → value."""

    def validation(self) -> float | None:
        """The bounded harmful score that the chosen trial had on the attacker's prompts."""
        return next((trial.harmful for trial in self.trials if trial.number == self.chosen), None)

    def prior(self, metric: str, judge: str = "") -> float | None:
        """What the model was on held-out prompts before the attack."""
        found = self.before.at(metric, 0, judge)
        return None if found is None else found.value


@dataclass(frozen=True, eq=False)
class SearchStudy:
    """All searches of a store."""

    arms: tuple[Arm, ...]
    searches: tuple[Search, ...]
    judges: tuple[str, ...]
    """The first is the one that attacks were chosen by."""
    _ratios: dict[tuple[Arm, str], CostRatio | None] = field(default_factory=dict, repr=False)

    def of(self, arm: Arm) -> list[Search]:
        """The searches of one arm, by seed."""
        own = (search for search in self.searches if search.arm == arm)
        return sorted(own, key=lambda search: [-1 if part is None else part for part in search.seed])

    def control(self, arm: Arm) -> Arm | None:
        """The undefended arm that this one is in proportion to; None for that arm itself, and where there is none."""
        first = self.of(arm)[0]
        named = {search.folder: search.arm for search in self.searches}
        if first.control in named:
            return named[first.control]
        others = [search for search in self.searches if _plain(search) and search.base == first.base]
        if first.arm in [search.arm for search in others]:
            return None
        alike = [search for search in others if search.threat_model == first.threat_model]
        return next((search.arm for search in (*alike, *others)), None)

    def costs(self, arm: Arm, axis: Axis) -> Costs:
        """What each run of an arm cost; of `TRIALS`, each search."""
        spent: list[tuple[Spent | None, Seed]] = []
        for search in self.of(arm):
            found = [search.totals.get(axis.metric)] if axis == TRIALS else [r.costs[axis.key] for r in search.reruns]
            spent += [(one, search.seed) for one in found]
        kept = [(one, seed) for one, seed in spent if one is not None]
        return Costs(
            tuple(one.value for one, _ in kept),
            tuple(one.censored for one, _ in kept),
            tuple(seed for _, seed in kept),
            len(spent) - len(kept),
        )

    def median(self, arm: Arm, axis: Axis) -> Cost | None:
        """The Kaplan–Meier median over seeds and re-runs; None if every run was lost."""
        costs = self.costs(arm, axis)
        return median_cost(costs.values, costs.censored) if costs.values else None

    def ratio(self, arm: Arm, axis: Axis) -> CostRatio | None:
        """The median cost over the control's; None where there is no control, or a run of neither."""
        if (arm, axis.key) not in self._ratios:
            control = self.control(arm)
            both = None if control is None else ratio_of(self.costs(arm, axis), self.costs(control, axis))
            self._ratios[arm, axis.key] = both
        return self._ratios[arm, axis.key]

    def ratios_by_seed(self, arm: Arm, axis: Axis) -> list[CostRatio]:
        """The ratio in each seed that the control has too, without an interval."""
        control = self.control(arm)
        if control is None:
            return []
        ours, theirs = self.costs(arm, axis), self.costs(control, axis)
        found = (ratio_of(ours.in_seed(seed), theirs.in_seed(seed)) for seed in dict.fromkeys(ours.seeds))
        return [ratio for ratio in found if ratio is not None]


def ratio_of(ours: Costs, theirs: Costs) -> CostRatio | None:
    """Median over median, seeds of the same name resampled together; None without a run on both sides."""
    if not ours.values or not theirs.values:
        return None
    return cost_ratio((ours.values, ours.censored), (theirs.values, theirs.censored), (ours.seeds, theirs.seeds))


def _plain(search: Search) -> bool:
    return search.arm.defense in ("sft", "", "none") and not search.arm.guard
