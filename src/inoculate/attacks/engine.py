"""Many fine-tunings as one computation: trials in stacks, on one set of rows, evaluated together.

A trial leaves its stack when it is over. Threads over stacks were measured, and made both an MLP and an encoder slower.

Suffixes: N trials · B rows of a batch · D features · C classes · P weights of a trial.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from inoculate.attacks.sequential import EVAL_ROWS, Curve, Examples, Trial, curve_of
from inoculate.attacks.stack import Features, Stack
from inoculate.attacks.vocabulary import reachable, whole

__all__ = ["Curve", "Examples", "Trial", "train"]

STACK_BYTES = 2**28
"""Memory for the weights of the trials that are trained at once, with gradient and optimizer state."""
PADDED_WEIGHTS = 2**16
"""Trials share a stack whatever their batches are, the smaller filled up, up to this many weights times tokens of a
row: a step's cost is its many small operations. Above, it is arithmetic, and only equal batches share a stack."""
COPIES = 6
"""Weights, gradient (in parts and joined), Adam's two averages, one temporary."""


class Sgd:
    """w ← w − η g, with an η for every trial."""

    def __init__(self, weights_NP: Tensor, rates: Sequence[float]) -> None:
        self.rates_N1 = torch.tensor(rates, dtype=torch.float64)[:, None].to(weights_NP.dtype)

    def step(self, weights_NP: Tensor, grads_NP: Tensor) -> None:
        weights_NP.addcmul_(grads_NP, self.rates_N1, value=-1)

    def keep(self, places: list[int]) -> None:
        """Forget the trials that have left."""
        self.rates_N1 = self.rates_N1[places]


class Adam(Sgd):
    """Adam as torch.optim has it (β 0.9 and 0.999, ε 1e-8, both averages corrected), with an η for every trial."""

    def __init__(self, weights_NP: Tensor, rates: Sequence[float]) -> None:
        super().__init__(weights_NP, rates)
        self.steps, self.mean_NP, self.square_NP = 0, torch.zeros_like(weights_NP), torch.zeros_like(weights_NP)
        self.root_NP = torch.empty_like(weights_NP)

    def step(self, weights_NP: Tensor, grads_NP: Tensor) -> None:
        self.steps += 1
        self.mean_NP.lerp_(grads_NP, 1 - 0.9)
        self.square_NP.mul_(0.999).addcmul_(grads_NP, grads_NP, value=1 - 0.999)
        root_NP = torch.sqrt(self.square_NP, out=self.root_NP).div_(math.sqrt(1 - 0.999**self.steps)).add_(1e-8)
        weights_NP.addcmul_(root_NP.reciprocal_().mul_(self.mean_NP), self.rates_N1 / (1 - 0.9**self.steps), value=-1)

    def keep(self, places: list[int]) -> None:
        super().keep(places)
        self.mean_NP, self.square_NP = self.mean_NP[places], self.square_NP[places]
        self.root_NP = torch.empty_like(self.mean_NP)


OPTIMIZERS: Mapping[str, type[Sgd]] = {"sgd": Sgd, "adam": Adam}


def _plan(trials: Sequence[Trial]) -> tuple[Tensor, Tensor]:
    """Rows for every step [steps, N, B], and the share of each in its trial's loss [N, B].

    A smaller batch is filled up with a row of its own trial at a share of 0.
    """
    rows = np.zeros((max(t.steps for t in trials), len(trials), max(t.rows_per_step for t in trials)), dtype=np.int64)
    share = np.zeros(rows.shape[1:])
    for place, trial in enumerate(trials):
        rows[:, place] = trial.rows[0]
        rows[: trial.steps, place, : trial.rows_per_step] = trial.batches()
        share[place, : trial.rows_per_step] = 1 / trial.rows_per_step
    return torch.from_numpy(rows), torch.from_numpy(share)


@dataclass(frozen=True)
class Job:
    """Trials and what they are carried out on: `sets` are validation rows and, where wanted, held-out rows."""

    body: nn.Module
    pool: Examples
    sets: Sequence[Examples]
    trials: Sequence[Trial]
    classes: int
    eval_steps: int
    dtype: torch.dtype

    @property
    def feature_size(self) -> int:
        """D."""
        return self.body.feature_size  # type: ignore[return-value]

    def part(self, numbers: Sequence[int]) -> Job:
        """The trials of these numbers alone."""
        return replace(self, trials=[self.trials[number] for number in numbers])

    def on_features(self) -> Job:
        """The same trials on what the body makes of the rows, under a body that passes it on."""
        still = copy.deepcopy(self.body).eval()

        @torch.no_grad()
        def run(examples: Examples) -> Examples:
            return Examples({"x": torch.cat([still(**c.inputs) for c in examples.chunks(EVAL_ROWS)])}, examples.labels)

        used = np.unique([row for trial in self.trials for row in trial.rows])
        return replace(
            self,
            body=Features(self.feature_size),
            pool=run(self.pool.take(torch.from_numpy(used))),
            sets=[run(examples) for examples in self.sets],
            trials=[replace(trial, rows=tuple(np.searchsorted(used, trial.rows).tolist())) for trial in self.trials],
        )

    def within_reach(self) -> Job:
        """The same trials, without the word vectors that none of their rows has."""
        if "input_ids" not in self.pool.inputs:
            return self
        used = torch.tensor(sorted({row for trial in self.trials for row in trial.rows}))
        return replace(self, body=reachable(self.body, self.pool.inputs["input_ids"][used]))

    def groups(self) -> Iterator[list[int]]:
        """Numbers of the trials that share a stack: of one optimizer, alike in length, within the memory."""
        weights = sum(weight.numel() for weight in self.body.parameters()) + self.classes * self.feature_size
        ids = self.pool.inputs.get("input_ids")
        tokens = 1 if ids is None else ids.shape[1]
        most = max(1, STACK_BYTES // (COPIES * weights * self.dtype.itemsize))
        alike: dict[tuple[str, int], list[int]] = {}
        for number, trial in sorted(enumerate(self.trials), key=lambda item: item[1].steps):
            size = trial.rows_per_step if weights * tokens > PADDED_WEIGHTS else 0
            alike.setdefault((trial.optimizer, size), []).append(number)
        for numbers in alike.values():
            yield from (numbers[start : start + most] for start in range(0, len(numbers), most))


class Race:
    """The trials of one stack on their way: who is still in it, and what evaluations saw of each."""

    def __init__(self, job: Job) -> None:
        self.job, self.trials = job, job.trials
        self.here, self.made = list(range(len(job.trials))), 0
        heads = [trial.head(job.classes, job.feature_size) for trial in job.trials]
        self.stack = Stack(job.body, torch.stack(heads).to(job.dtype))
        rates = [trial.learning_rate for trial in job.trials]
        self.optimizer = OPTIMIZERS[job.trials[0].optimizer](self.stack.weights_NP, rates)
        self.rows_SNB, share_NB = _plan(job.trials)
        self.share_NB = share_NB.to(job.dtype)
        self.seen: list[list[tuple[int, list[float]]]] = [[] for _ in job.trials]
        self.weights: list[Mapping[str, Tensor] | None] = [None] * len(job.trials)
        self.diverged = [False] * len(job.trials)

    def run(self, keep: bool) -> list[Curve]:
        """Carry out all trials."""
        job, ends = self.job, {trial.steps for trial in self.trials}
        for step in sorted({*range(job.eval_steps, max(ends), job.eval_steps), *ends}):
            if self.here:
                self.look(self.run_to(step))
                self.leave(keep)
        rows = zip(self.seen, self.diverged, self.weights, strict=True)
        return [curve_of(seen, len(job.sets) > 1, diverged, weights) for seen, diverged, weights in rows]

    def run_to(self, step: int) -> Tensor:
        """Train until `step` steps have been made; the sum of every trial's losses on the way [N]."""
        total_N = torch.zeros(len(self.here), dtype=self.share_NB.dtype)
        for rows_NB in self.rows_SNB[self.made : step]:
            losses_N, grads_NP = self.stack.losses_and_grad(self.job.pool.take(rows_NB.flatten()), self.share_NB)
            self.optimizer.step(self.stack.weights_NP, grads_NP)
            total_N += losses_N
        self.made = step
        return total_N

    def look(self, total_N: Tensor) -> None:
        """Evaluate the trials that are due; a sum of losses that is not finite is a divergence."""
        due = [self.trials[number].evaluates_at(self.made, self.job.eval_steps) for number in self.here]
        found = zip(*(self.stack.accuracies(examples) for examples in self.job.sets), strict=True)
        for number, is_due, sane, accuracies in zip(self.here, due, total_N.isfinite().tolist(), found, strict=True):
            if is_due and sane and not math.isnan(sum(accuracies)):
                self.seen[number].append((self.made, list(accuracies)))
            elif is_due or not sane:
                self.diverged[number] = True

    def leave(self, keep: bool) -> None:
        """Take the trials that are over or have diverged out of the stack."""
        over = [self.made == self.trials[number].steps or self.diverged[number] for number in self.here]
        if any(over):
            for place, number in enumerate(self.here):
                if over[place] and keep:
                    self.weights[number] = whole(self.job.body, self.stack.weights_of(place))
            stay = [place for place, gone in enumerate(over) if not gone]
            self.here = [self.here[place] for place in stay]
            self.stack.bind(self.stack.weights_NP[stay])
            self.optimizer.keep(stay)
            self.rows_SNB, self.share_NB = self.rows_SNB[:, stay], self.share_NB[stay]


def train(
    body: nn.Module,
    pool: Examples,
    validation: Examples,
    heldout: Examples | None,
    trials: Sequence[Trial],
    *,
    classes: int,
    eval_steps: int,
    keep: bool = False,
) -> list[Curve]:
    """Carry out all trials, each as `train_one` in `inoculate.attacks.sequential` would, up to rounding.

    In eval mode (no dropout). A trial leaves its stack at its last step, or when it has diverged, and disturbs no
    other. Under a frozen body features are computed once, and heads are trained on them.

    Args:
        body: maps inputs [B, ...] to features [B, D] row by row; its weights must be those of `LAYERS`.
        heldout: evaluated wherever `validation` is; None for nowhere.
        classes: C, rows of the heads.
        keep: put the final weights on the curves.

    Returns:
        A curve for each trial, in their order.

    Raises:
        InputError: a layer of the body has weights and no batched form.
    """
    dtype = next((weight.dtype for weight in body.parameters()), torch.get_default_dtype())
    sets = [validation] if heldout is None else [validation, heldout]
    job = Job(body, pool, sets, trials, classes, eval_steps, dtype)
    curves: dict[int, Curve] = {}
    for frozen in (True, False):
        numbers = [number for number, trial in enumerate(trials) if trial.frozen is frozen]
        part = job.part(numbers)
        if numbers:
            part = part.on_features() if frozen else part.within_reach()
        for group in part.groups():
            found = Race(part.part(group)).run(keep)
            curves.update(zip((numbers[number] for number in group), found, strict=True))
    return [curves[number] for number in range(len(trials))]
