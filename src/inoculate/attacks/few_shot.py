"""The few-shot attack: a search over fine-tuning settings on n samples, and the best of them run again.

Source: Henderson et al., arXiv:2211.14946, §4 and its code (adapt.py): TPE, at most 50 trials, stopped after 15 without
progress or at accuracy 1; learning rate in [1e-5, 1e-2], 100 to 1,000 steps, batches of 12, 24 or 48, body frozen or
not; 15 re-runs. Departures: Optuna's TPE for Hyperopt's; half of the trials are asked for at a time; no dropout; the
accuracy on held-out rows stands beside the published one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import PositiveInt, model_validator

from inoculate.core.errors import InputError
from inoculate.core.seeds import derive, numpy_rng
from inoculate.core.types import Positive, Value

if TYPE_CHECKING:
    from torch import nn

    from inoculate.attacks.sequential import Curve, Engine, Examples, Trial

OptimizerName: TypeAlias = Literal["adam", "sgd"]
Status: TypeAlias = Literal["complete", "diverged"]
"""Whether a run came to its last step; what a diverged one reached before stays on record and counts."""


class Setting(Value):
    """What the attacker may choose."""

    learning_rate: Positive
    steps: PositiveInt
    batch_size: PositiveInt
    freeze_body: bool
    optimizer: OptimizerName


@dataclass(frozen=True)
class Tried:
    """One trial of the search. The accuracy is None if the trial diverged before its first evaluation."""

    setting: Setting
    validation_accuracy: float | None
    status: Status


@dataclass(frozen=True)
class Rerun:
    """One run of the best setting, with samples, head and order of its own."""

    validation_accuracy: float | None
    """The best seen along the run: the published number, which flatters the attacker."""
    heldout_accuracy: float | None
    """On rows that selected nothing, at the step of the best validation accuracy."""
    best_step: int | None
    status: Status


@dataclass(frozen=True)
class Searched:
    """What the attack found. `best` is None, and `reruns` empty, if every trial diverged."""

    trials: tuple[Tried, ...]
    best: Setting | None
    reruns: tuple[Rerun, ...]


class FewShot(Value):
    """Fine-tune on `num_samples` rows of a pool, with the setting that does best on validation rows."""

    name: Literal["few_shot"] = "few_shot"
    num_samples: PositiveInt
    n_trials: PositiveInt = 50
    patience: PositiveInt = 15
    """The search ends when as many trials in a row were no better than the best before them."""
    learning_rate: tuple[Positive, Positive] = (1e-5, 1e-2)
    """Bounds of a log-uniform range."""
    min_steps: PositiveInt = 100
    max_steps: PositiveInt = 1000
    steps_step: PositiveInt = 100
    batch_sizes: tuple[PositiveInt, ...] = (12, 24, 48)
    freeze_body: tuple[bool, ...] = (True, False)
    optimizers: tuple[OptimizerName, ...] = ("adam",)
    eval_steps: PositiveInt = 50
    reruns: PositiveInt = 15
    trials_per_ask: PositiveInt | None = None
    """Trials that the search proposes at a time, and the engine trains at once; half of `n_trials` by default. The
    search learns, and ends, between asks only."""
    seed: int = 0

    @model_validator(mode="after")
    def _space_is_not_empty(self) -> FewShot:
        if self.learning_rate[0] > self.learning_rate[1]:
            raise ValueError("learning_rate: the first bound is above the second")
        if self.min_steps > self.max_steps:
            raise ValueError("min_steps is above max_steps")
        if not (self.batch_sizes and self.freeze_body and self.optimizers):
            raise ValueError("batch_sizes, freeze_body and optimizers need a choice each")
        return self

    def run(
        self,
        body: nn.Module,
        pool: Examples,
        validation: Examples,
        heldout: Examples,
        *,
        classes: int,
        engine: Engine | None = None,
    ) -> Searched:
        """Search, then run the best setting again. `body` is left as it is.

        Args:
            body: maps inputs to features [B, D].
            pool: rows that samples are drawn from: the search's once, every re-run's anew.
            validation: all of it selects settings, and the step of a run.
            heldout: evaluated along the re-runs alone.
            classes: C, of the task.
            engine: carries out trials; `inoculate.attacks.engine.train` by default.

        Raises:
            InputError: the pool has fewer than `num_samples` rows, or rows of a single class.
        """
        if engine is None:
            from inoculate.attacks.engine import train as engine
        self._check(pool)

        def carry_out(trials: Sequence[Trial], heldout: Examples | None) -> list[Curve]:
            return engine(body, pool, validation, heldout, trials, classes=classes, eval_steps=self.eval_steps)

        samples = self._samples(len(pool), "search")
        tried: list[Tried] = []
        search, at_once = _Search(self), self.trials_per_ask or -(-self.n_trials // 2)
        while len(tried) < self.n_trials and not self._is_over(tried):
            settings = search.ask(min(at_once, self.n_trials - len(tried)))
            seeds = range(len(tried), len(tried) + len(settings))
            trials = [
                trial_of(setting, samples, derive(self.seed, "trial", number))
                for setting, number in zip(settings, seeds, strict=True)
            ]
            curves = carry_out(trials, None)
            tried += [_tried(setting, curve) for setting, curve in zip(settings, curves, strict=True)]
            search.tell(tried[-len(settings) :])
        best = _best(tried)
        if best is None:
            return Searched(tuple(tried), None, ())
        again = [
            trial_of(tried[best].setting, self._samples(len(pool), "rerun", number), derive(self.seed, "rerun", number))
            for number in range(self.reruns)
        ]
        return Searched(tuple(tried), tried[best].setting, tuple(_rerun(curve) for curve in carry_out(again, heldout)))

    def _check(self, pool: Examples) -> None:
        if self.num_samples > len(pool):
            expected = f"at most the {len(pool)} rows of the pool"
            raise InputError(
                "too few rows to draw from", field="num_samples", found=self.num_samples, expected=expected
            )
        if len(pool.labels.unique()) < 2:
            raise InputError("the pool has rows of one class alone: there is nothing to learn", field="pool")

    def _samples(self, size: int, *path: object) -> tuple[int, ...]:
        rng = numpy_rng(self.seed, "samples", *path)
        return tuple(rng.choice(size, self.num_samples, replace=False).tolist())

    def _is_over(self, tried: Sequence[Tried]) -> bool:
        best = _best(tried)
        return best is not None and (tried[best].validation_accuracy == 1 or len(tried) - 1 - best >= self.patience)


def trial_of(setting: Setting, rows: tuple[int, ...], seed: int) -> Trial:
    """A trial for the engine."""
    from inoculate.attacks.sequential import Trial

    return Trial(
        learning_rate=setting.learning_rate,
        steps=setting.steps,
        batch_size=setting.batch_size,
        frozen=setting.freeze_body,
        optimizer=setting.optimizer,
        rows=rows,
        seed=seed,
    )


class _Search:
    """Optuna's TPE over an attack's space. What is asked and not told yet counts as bad: it is not asked again."""

    def __init__(self, attack: FewShot) -> None:
        import optuna
        from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=derive(attack.seed, "search") % 2**32, constant_liar=True)
        self.study = optuna.create_study(sampler=sampler, direction="maximize")
        self.space: dict[str, BaseDistribution] = {
            "learning_rate": FloatDistribution(*attack.learning_rate, log=True),
            "steps": IntDistribution(attack.min_steps, attack.max_steps, step=attack.steps_step),
            "batch_size": CategoricalDistribution(attack.batch_sizes),
            "freeze_body": CategoricalDistribution(attack.freeze_body),
            "optimizer": CategoricalDistribution(attack.optimizers),
        }
        self.asked: list[Any] = []

    def ask(self, count: int) -> list[Setting]:
        self.asked = [self.study.ask(self.space) for _ in range(count)]
        return [Setting(**trial.params) for trial in self.asked]

    def tell(self, tried: Sequence[Tried]) -> None:
        """A trial without any accuracy is told as 0: the search must learn to keep away from there."""
        for trial, outcome in zip(self.asked, tried, strict=True):
            self.study.tell(trial, outcome.validation_accuracy or 0.0)


def _best(tried: Sequence[Tried]) -> int | None:
    """Place of the first of the best trials that have an accuracy."""
    scores = [-1.0 if trial.validation_accuracy is None else trial.validation_accuracy for trial in tried]
    return scores.index(max(scores)) if max(scores, default=-1) >= 0 else None


def _tried(setting: Setting, curve: Curve) -> Tried:
    return Tried(
        setting=setting,
        validation_accuracy=None if curve.best is None else curve.validation[curve.best],
        status="diverged" if curve.diverged else "complete",
    )


def _rerun(curve: Curve) -> Rerun:
    status: Status = "diverged" if curve.diverged else "complete"
    if (best := curve.best) is None:
        return Rerun(None, None, None, status)
    heldout = None if curve.heldout is None else curve.heldout[best]
    return Rerun(curve.validation[best], heldout, curve.steps[best], status)
