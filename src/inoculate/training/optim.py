"""Optimizers and schedules, from training arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from inoculate.training.config import Training


def build_optimizer(weights: Sequence[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """The optimizer named by `training.optim`, with fused kernels (one pass over each weight)."""
    if training.optim == "sgd":
        return torch.optim.SGD(weights, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True)
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
    from transformers import get_scheduler

    return get_scheduler(training.lr_scheduler_type, optimizer, training.warmup_steps, steps)
