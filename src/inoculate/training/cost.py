"""What one optimizer step costs: the defense's own code, run on tensors without numbers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import nn

from inoculate.core.types import Batch, Batches, Defense, Staged
from inoculate.data.batches import Layout, collate
from inoculate.data.templates import Encoded
from inoculate.defenses import SFT
from inoculate.models.footprint import held_bytes, traced
from inoculate.models.loss import loss_of
from inoculate.models.packing import packed_attention
from inoculate.models.weights import trainable
from inoculate.training.config import Training
from inoculate.training.layout import layout_for
from inoculate.training.optim import build_optimizer

_ADVERSE = 3
"""Answer tokens of roles differ, since RepNoise looks at what harmful and safe answers do not share."""


class Length(NamedTuple):
    """Tokens of a row, and how many of them are the prompt, on which no loss is taken."""

    tokens: int
    prompt: int = 1


class StepCost(NamedTuple):
    """Of one optimizer step; memory in bytes, of one device."""

    flops: int
    """Over all micro-batches, without the optimizer's own arithmetic."""
    sft_flops: int
    """Of plain SFT on the batches of the defense's first role."""
    gradients: int
    """Of the trainable weights."""
    optimizer: int
    """State that the optimizer keeps between steps."""
    activations: int
    """Held at the end of one forward pass for the way back."""
    beyond_sft: int
    """What the defense needs at its peak beyond SFT's."""
    peak: int
    """Beyond the weights: optimizer state, gradients, activations, copies and what passes by."""


def step_cost(
    model: nn.Module, defense: Defense, training: Training, lengths: Mapping[str, Length], max_length: int
) -> StepCost:
    """The cost of one step of `fit`, every row as long as `lengths` says.

    Args:
        model: `without_numbers`, its trainable weights marked.
        lengths: role → the length of its rows.
        max_length: of the data, which decides how rows are laid out in a batch.
    """
    layout = layout_for(model, training, max_length)
    batches = _batches(defense.needs, training.per_device_train_batch_size, lengths, layout)
    shared: Batch = batches[next(iter(defense.needs))][0]
    model.train()
    inside = _Inside(model, training, layout)
    with inside, traced(model) as footprint:
        loss = loss_of(model, shared)
        activations = footprint.live
        del loss
    sft = _Step(inside, SFT(), {"align": [shared]})
    full = sft if isinstance(defense, SFT) else _Step(inside, defense, batches)
    parts = training.gradient_accumulation_steps
    return StepCost(
        flops=full.flops * parts,
        sft_flops=sft.flops * parts,
        gradients=held_bytes(list(trainable(model))),
        optimizer=full.state,
        activations=activations,
        beyond_sft=max(0, full.peak - sft.peak),
        peak=full.peak,
    )


class _Inside:
    """What `fit` computes gradients in: packed attention and autocast. May be entered again and again."""

    def __init__(self, model: nn.Module, training: Training, layout: Layout) -> None:
        self.model, self.training, self._packs = model, training, layout == "varlen"
        self._stack = ExitStack()

    def __enter__(self) -> None:
        if self._packs:
            self._stack.enter_context(packed_attention(self.model))
        self._stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=self.training.bf16))

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class _Step:
    """A step that was traced: FLOPs of one micro-batch, bytes of the optimizer's state, and the peak."""

    def __init__(self, inside: _Inside, defense: Defense, batches: Batches) -> None:
        model, training = inside.model, inside.training
        with traced(model) as footprint:
            optimizer = _begun(model, training)
            self.state = footprint.live
            objective: Any = defense
            if isinstance(defense, Staged):
                objective = defense.start(model, 1)
                objective.before_step(0)
            before = footprint.flops
            with inside:
                objective.backward(model, batches)
                self.flops = footprint.flops - before
                if training.gradient_accumulation_steps > 1:  # a second micro-batch meets the first one's gradient
                    objective.backward(model, batches)
            if training.max_grad_norm:
                nn.utils.clip_grad_norm_(trainable(model), training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.peak = footprint.peak


def _begun(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """An optimizer that has made a step, and so has its state."""
    optimizer = build_optimizer(trainable(model), training)
    for weight in trainable(model):
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def _batches(
    needs: Mapping[str, int], rows: int, lengths: Mapping[str, Length], layout: Layout
) -> dict[str, list[Batch]]:
    """Real batches of the shapes that a step has; of role i, all answer tokens are `_ADVERSE` + i."""
    made: dict[str, list[Batch]] = {}
    for number, (role, count) in enumerate(needs.items()):
        length = lengths[role]
        prompt = min(length.prompt, length.tokens - 1)
        row = Encoded([1] * prompt + [_ADVERSE + number] * (length.tokens - prompt), prompt)
        made[role] = [collate([row] * rows, layout, 0) for _ in range(count)]
    return made
