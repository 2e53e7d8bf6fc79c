# pyright: reportPrivateImportUsage=false, reportArgumentType=false, reportCallIssue=false
# (torch's multi-tensor functions are public in all but name, and typed for lists of plain tensors)
"""Vector arithmetic on the trainable weights of a model: the six verbs that defenses are written in.

A gradient is a list of tensors, one per trainable weight, in the order of `trainable(model)`. Where a launch has
several processes, each computes the loss of its share of the rows, and a gradient is the sum of all shares; where the
weights are sharded, gradients are laid out as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, TypeAlias

from inoculate.core import ranks
from inoculate.models.sharding import like, local, reshard

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from inoculate.core.types import Batch

Grads: TypeAlias = "list[Tensor]"


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The weights with `requires_grad`, in the model's order."""
    if ranks.count() > 1:
        reshard(model)
    return [weight for weight in model.parameters() if weight.requires_grad]


def norm(grads: Sequence[Tensor], *, of_rows: bool = False) -> float:
    """One L2 norm over all tensors together, as in the papers (not per layer).

    Args:
        of_rows: the tensors are of this process's rows alone: other processes hold the others.
    """
    from torch.nn.utils import get_total_norm

    length = float(get_total_norm([local(grad) for grad in grads]))
    in_parts = ranks.count() > 1 and (of_rows or any(local(grad) is not grad for grad in grads))
    return math.sqrt(ranks.total(length**2)) if in_parts else length


def clip(model: nn.Module, limit: float) -> float:
    """Scale `.grad` of sharded weights down to a norm of `limit`, as torch does for whole ones; the norm before."""
    import torch

    grads = [weight.grad for weight in trainable(model) if weight.grad is not None]
    length = norm(grads)
    torch._foreach_mul_([local(grad) for grad in grads], min(1.0, limit / (length + 1e-6)))
    return length


def combine(*terms: tuple[float, Grads]) -> Grads:
    """Σ c · g over (c, g) pairs, in new tensors."""
    import torch

    (first, laid_out), *rest = terms
    total = torch._foreach_mul([local(grad) for grad in laid_out], first)
    for coefficient, grads in rest:
        torch._foreach_add_(total, [local(grad) for grad in grads], alpha=coefficient)
    return [like(piece, grad) for piece, grad in zip(total, laid_out, strict=True)]


def loss_and_grad(
    model: nn.Module, batch: Batch, loss_of: Callable[[nn.Module, Batch], Tensor] | None = None
) -> tuple[float, Grads]:
    """Loss of a batch (by default cross-entropy) and its gradient, with `.grad` and the RNG state as they were.

    The gradient is taken by `loss.backward()` with `.grad` set aside, not by `autograd.grad`, which sharded weights do
    not synchronize. The RNG is forked, so that every pass of one step sees the same dropout mask. Weights that the loss
    does not reach get zeros. In several processes both are sums over the processes.
    """
    import torch

    from inoculate.models import loss as losses

    weights = trainable(model)
    aside = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    device = losses.device_of(model)
    try:
        with forked_rng(device):
            loss = (loss_of or losses.loss_of)(model, batch)
            loss.backward()
        grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    finally:
        for weight, grad in zip(weights, aside, strict=True):
            weight.grad = grad
    ranks.sum_over([grad for grad in grads if local(grad) is grad])
    return ranks.total(loss.item()), grads


def forked_rng(device: torch.device) -> AbstractContextManager[None]:
    """Inside, random numbers may be drawn; afterwards the RNG is as it was."""
    import torch

    return torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda")


def add_to_grad(model: nn.Module, grads: Grads) -> None:
    """Add a gradient to `.grad`, so that calls compose."""
    for weight, grad in zip(trainable(model), grads, strict=True):
        if weight.grad is None:
            weight.grad = grad
        else:
            local(weight.grad).add_(local(grad))


@contextmanager
def shifted(model: nn.Module, *, along: Grads, by: float) -> Iterator[None]:
    """Inside the context the trainable weights are w + by · along; afterwards they are w again, from a copy.

    Adding back what was subtracted is not w: in float32 it leaves 0.8 % of weights changed, in bf16 far more. Autocast
    keeps copies of the weights that it has cast, which must not outlive a shift.
    """
    import torch

    weights = [local(weight) for weight in trainable(model)]
    with torch.no_grad():
        saved = [weight.clone() for weight in weights]
        torch._foreach_add_(weights, [local(direction) for direction in along], alpha=by)
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        reshard(model)
        with torch.no_grad():
            torch._foreach_copy_(weights, saved)
        torch.clear_autocast_cache()


@contextmanager
def averaged(model: nn.Module, over: int) -> Iterator[None]:
    """What is added to `.grad` inside the context is divided by `over`; what was there before is not."""
    weights = trainable(model)
    aside = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    try:
        yield
    finally:
        for weight, before in zip(weights, aside, strict=True):
            if weight.grad is not None and over != 1:
                weight.grad.div_(over)
            if before is not None:
                weight.grad = before if weight.grad is None else before.add_(weight.grad)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; each module's own mode afterwards, since they may differ."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
