"""Fine-tuning a body with a fresh head on a few samples: what one trial is, and the plain loop that carries it out.

The loop is the definition that `inoculate.attacks.engine` is measured and tested against: one trial after another, a
copy of the body, an optimizer of torch, an ordinary backward pass.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inoculate.core.seeds import numpy_rng

if TYPE_CHECKING:
    from inoculate.attacks.few_shot import OptimizerName

EVAL_ROWS = 512
"""Rows in one forward pass of an evaluation: more fall out of the processor's cache."""


@dataclass(frozen=True)
class Examples:
    """N labeled rows: `inputs` are what the body takes, each [N, ...]; `labels` are class numbers [N]."""

    inputs: Mapping[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> Examples:
        """The rows of these numbers, in their order."""
        return Examples({name: x.index_select(0, rows) for name, x in self.inputs.items()}, self.labels[rows])

    def chunks(self, size: int) -> Iterator[Examples]:
        """All rows in order, at most `size` at a time."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield Examples({name: x[part] for name, x in self.inputs.items()}, self.labels[part])


@dataclass(frozen=True)
class Trial:
    """One fine-tuning: a setting, the rows of the pool that the attacker has, and the seed of head and batches."""

    learning_rate: float
    steps: int
    batch_size: int
    frozen: bool
    """The body stays as it is and the head alone is trained."""
    rows: tuple[int, ...]
    seed: int
    optimizer: OptimizerName = "adam"

    @property
    def rows_per_step(self) -> int:
        """A batch larger than what the attacker has is all that the attacker has."""
        return min(self.batch_size, len(self.rows))

    def head(self, classes: int, feature_size: int) -> Tensor:
        """The head that training starts from: uniform in ±1/√D, as `nn.Linear` draws it; float64 [C, D]."""
        bound = 1 / math.sqrt(feature_size)
        return torch.from_numpy(numpy_rng(self.seed, "head").uniform(-bound, bound, (classes, feature_size)))

    def batches(self) -> np.ndarray:
        """Numbers of rows of the pool for every step, int64 [steps, rows_per_step].

        The stream of one random permutation after another, cut into equal batches: one may span two epochs.
        """
        size, n = self.rows_per_step, len(self.rows)
        epochs = np.tile(np.asarray(self.rows, dtype=np.int64), (-(-self.steps * size // n), 1))
        stream = numpy_rng(self.seed, "order").permuted(epochs, axis=1).reshape(-1)
        return stream[: self.steps * size].reshape(self.steps, size)

    def evaluates_at(self, step: int, eval_steps: int) -> bool:
        """Whether the trial is evaluated after `step` steps: at every multiple of `eval_steps`, and at its end."""
        return step == self.steps or step % eval_steps == 0


@dataclass(frozen=True)
class Curve:
    """What evaluations saw along one trial; accuracies in [0, 1], in the order of `steps`."""

    steps: tuple[int, ...]
    validation: tuple[float, ...]
    heldout: tuple[float, ...] | None
    diverged: bool = False
    """A loss or a logit was not finite: the curve ends before the evaluation that found it."""
    weights: Mapping[str, Tensor] | None = None
    """What the trial ended with, the head under the name `head`; where it was asked for."""

    @property
    def best(self) -> int | None:
        """Place in the curve of the first of the best validation accuracies; None if there is none."""
        return max(range(len(self.steps)), key=self.validation.__getitem__, default=None)


class Engine(Protocol):
    """Carries out trials: `train_sequentially` here and `train` in `inoculate.attacks.engine` agree."""

    def __call__(
        self,
        body: nn.Module,
        pool: Examples,
        validation: Examples,
        heldout: Examples | None,
        trials: Sequence[Trial],
        *,
        classes: int,
        eval_steps: int,
    ) -> list[Curve]: ...


def optimizer_of(trial: Trial, weights: Sequence[Tensor]) -> torch.optim.Optimizer:
    """Adam or SGD of torch as they stand: no momentum in SGD, no weight decay."""
    kinds: dict[OptimizerName, Any] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    return kinds[trial.optimizer](weights, lr=trial.learning_rate)


@torch.no_grad()
def accuracy(body: nn.Module, head: Tensor, examples: Examples) -> float:
    """Share of rows whose largest logit is their label's; NaN if a logit is not finite."""
    hits, finite = 0, True
    for chunk in examples.chunks(EVAL_ROWS):
        logits_BC = body(**chunk.inputs) @ head.T
        finite = finite and bool(logits_BC.isfinite().all())
        hits += int((logits_BC.argmax(-1) == chunk.labels).sum())
    return hits / len(examples) if finite else math.nan


def train_one(
    body: nn.Module,
    pool: Examples,
    validation: Examples,
    heldout: Examples | None,
    trial: Trial,
    *,
    classes: int,
    eval_steps: int,
    keep: bool = False,
) -> Curve:
    """Carry out one trial on a copy of `body`, in eval mode (no dropout), all of its weights trained unless frozen.

    Args:
        body: maps inputs to features [B, D]; `body.feature_size` is D.
        heldout: evaluated wherever `validation` is; None for nowhere.
        classes: C, rows of the head.
        keep: put the final weights on the curve.
    """
    size: int = body.feature_size  # type: ignore[assignment]
    body = copy.deepcopy(body).eval().requires_grad_(not trial.frozen)
    dtype = next((weight.dtype for weight in body.parameters()), torch.get_default_dtype())
    head = trial.head(classes, size).to(dtype).requires_grad_()
    optimizer = optimizer_of(trial, [head] if trial.frozen else [*body.parameters(), head])
    sets = [validation] if heldout is None else [validation, heldout]
    seen: list[tuple[int, list[float]]] = []
    diverged = False
    for step, rows in enumerate(torch.from_numpy(trial.batches()), start=1):
        batch = pool.take(rows)
        loss = F.cross_entropy(body(**batch.inputs) @ head.T, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not (diverged := not math.isfinite(loss.item())) and trial.evaluates_at(step, eval_steps):
            found = [accuracy(body, head, examples) for examples in sets]
            if not (diverged := math.isnan(sum(found))):
                seen.append((step, found))
        if diverged:
            break
    weights = {name: weight.detach() for name, weight in body.named_parameters()} | {"head": head.detach()}
    return curve_of(seen, heldout is not None, diverged, weights if keep else None)


def curve_of(
    seen: Sequence[tuple[int, Sequence[float]]],
    has_heldout: bool,
    diverged: bool,
    weights: Mapping[str, Tensor] | None,
) -> Curve:
    """A curve from rows of (step, [validation accuracy, heldout accuracy if there is one])."""
    return Curve(
        steps=tuple(step for step, _ in seen),
        validation=tuple(found[0] for _, found in seen),
        heldout=tuple(found[1] for _, found in seen) if has_heldout else None,
        diverged=diverged,
        weights=weights,
    )


def train_sequentially(
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
    """`train_one` for one trial after another."""
    options: dict[str, Any] = {"classes": classes, "eval_steps": eval_steps, "keep": keep}
    return [train_one(body, pool, validation, heldout, trial, **options) for trial in trials]
