"""Optimizers and schedules, from training arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from inoculate.models.sharding import local
from inoculate.training.config import Training


def build_optimizer(weights: Sequence[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """The optimizer named by `training.optim`, where there are any with fused kernels (one pass over each weight)."""
    rate, decay = training.learning_rate, training.weight_decay
    match training.optim:
        case "sgd":
            fused = all(local(weight) is weight for weight in weights)  # of sharded weights there is no such kernel
            return torch.optim.SGD(weights, lr=rate, weight_decay=decay, fused=fused)
        case "adafactor":
            return torch.optim.Adafactor(weights, lr=rate, weight_decay=decay)
        case "muon":
            return MuonAdamW(weights, training)
    return _adamw(weights, training)


def _adamw(weights: Sequence[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        weights,
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        weight_decay=training.weight_decay,
        fused=True,
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, training: Training, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule named by `training.lr_scheduler_type`, over `steps` optimizer steps."""
    if training.lr_scheduler_type == "constant":  # transformers' schedules import peft, which takes a worker seconds
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    from transformers import get_scheduler

    return get_scheduler(training.lr_scheduler_type, optimizer, training.warmup_steps, steps)


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon for matrices and AdamW for all else, as one optimizer: one state, one list of groups.

    Muon's updates are scaled to the root mean square of AdamW's, so that one learning rate serves both (Liu et al.,
    arXiv:2502.16982, §2.2).
    """

    def __init__(self, weights: Sequence[nn.Parameter], training: Training) -> None:
        matrices = [weight for weight in weights if weight.ndim == 2]
        others = [weight for weight in weights if weight.ndim != 2]
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            rate, decay = training.learning_rate, training.weight_decay
            self._parts.append(torch.optim.Muon(matrices, rate, decay, adjust_lr_fn="match_rms_adamw"))
        if others:
            self._parts.append(_adamw(others, training))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: Any = None) -> None:
        """One step of both."""
        if closure is not None:
            raise ValueError("a closure would be called by each of the two")
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of any optimizer."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """The parts work on this optimizer's own state and groups, which loading replaces."""
        groups = iter(self.param_groups)
        for part in self._parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]
