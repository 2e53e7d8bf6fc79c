"""The inner loop: fine-tuning steps that can be differentiated, and two ways to differentiate them.

`sweep` keeps the graph of all steps, `sweep_again` none: it goes forward without one, and on the way back makes each
step again. Both give the same losses and gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from inoculate.core.errors import InputError
from inoculate.core.types import Batch
from inoculate.models.adversary import Harm


class Attacker(NamedTuple):
    """Where a simulated attacker stands: weights [P] and head as one vector [Q], and their optimizer's moments."""

    weights_Q: Tensor
    first_Q: Tensor
    second_Q: Tensor


class InnerStep:
    """One optimizer step of the simulated attacker, as an expression that can be differentiated.

    Adam divides by √(v̂ + ε²) where torch's divides by √v̂ + ε: alike for |g| ≫ ε and for g = 0, and differentiable at
    g = 0.

    Args:
        head_factor: the head's learning rate over the body's.
        max_norm: the gradient's norm is clipped to this; the norm itself is held fixed.
        second_order: keep the graph of the gradient.
    """

    def __init__(
        self,
        harm: Harm,
        head_shape: torch.Size,
        optimizer: Literal["adam", "sgd"],
        *,
        head_factor: float,
        max_norm: float,
        epsilon: float,
        second_order: bool,
    ) -> None:
        self.harm, self.head_shape, self.optimizer = harm, head_shape, optimizer
        self.max_norm, self.epsilon, self.second_order = max_norm, epsilon, second_order
        self.P = len(harm.start())
        self.scale_Q = harm.weights[0].new_ones(self.P + head_shape.numel())
        self.scale_Q[self.P :] = head_factor

    def apart(self, weights_Q: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [P] and head [C, D]."""
        return weights_Q[: self.P], weights_Q[self.P :].view(self.head_shape)

    def __call__(self, state: Attacker, batch: Batch, number: int, learning_rate: Tensor) -> Attacker:
        """The state after step `number`, counted from 1."""
        weights_Q = state.weights_Q
        if not weights_Q.requires_grad:
            weights_Q.requires_grad_()
        loss = self.harm.loss(*self.apart(weights_Q), batch)
        (grad_Q,) = torch.autograd.grad(loss, weights_Q, create_graph=self.second_order)
        grad_Q = grad_Q * (self.max_norm / grad_Q.detach().norm().clamp_min(self.max_norm))
        rate_Q = learning_rate * self.scale_Q
        if self.optimizer == "sgd":
            return state._replace(weights_Q=weights_Q - rate_Q * grad_Q)
        first_Q = torch.lerp(grad_Q, state.first_Q, 0.9)
        second_Q = torch.lerp(grad_Q * grad_Q, state.second_Q, 0.999)
        root_Q = (second_Q / (1 - 0.999**number) + self.epsilon**2).sqrt()
        return Attacker(weights_Q - rate_Q * (first_Q / (1 - 0.9**number)) / root_Q, first_Q, second_Q)


def sweep(
    step: InnerStep, begin: Attacker, learning_rate: Tensor, inner: Sequence[Batch], held_out: Batch
) -> tuple[Tensor, Tensor, Tensor]:
    """An attacker's K steps, and how its held-out loss depends on where it began.

    Args:
        learning_rate: 0-dim.
        inner: the K batches of the steps.
        held_out: the batch on which the loss is measured, before the first step and after each.

    Returns:
        The K + 1 held-out losses, and the gradient of their mean over `begin`'s weights [Q] and the learning rate.
    """
    harm, start_Q, rate = step.harm, begin.weights_Q.requires_grad_(), learning_rate.requires_grad_()
    state, outcomes = begin, [harm.outcome(*step.apart(start_Q), held_out)]
    for number, batch in enumerate(inner, start=1):
        state = step(state, batch, number, rate)
        outcomes.append(harm.outcome(*step.apart(state.weights_Q), held_out))
    losses_K = harm.score(torch.stack(outcomes), held_out)
    slope_Q, slope_rate = _grad(losses_K.mean(), start_Q, rate)
    return losses_K.detach(), slope_Q, slope_rate


def sweep_again(
    step: InnerStep, begin: Attacker, learning_rate: Tensor, inner: Sequence[Batch], held_out: Batch
) -> tuple[Tensor, Tensor, Tensor]:
    """`sweep` in the memory of one step and K + 1 states: the adjoint method.

    With s_k the state (weights and moments) after k steps, λ_k = ∂(mean loss)/∂s_k follows from λ_{k+1} through one
    step made again: λ_k = (∂s_{k+1}/∂s_k)ᵀ λ_{k+1} + ∂l(s_k)/∂s_k / (K + 1).
    """
    harm, rate = step.harm, learning_rate
    states = [begin]
    for number, batch in enumerate(inner, start=1):
        states.append(_cut(step(_cut(states[-1]), batch, number, rate)))
    with torch.no_grad():
        outcomes = torch.stack([harm.outcome(*step.apart(state.weights_Q), held_out) for state in states])
        losses_K = harm.score(outcomes, held_out, maps := harm.maps(outcomes, held_out))
    adjoint: list[Tensor] = []
    slope_rate = torch.zeros_like(rate)
    for k in reversed(range(len(states))):
        here, leaf_rate = (
            Attacker(*(part.detach().requires_grad_() for part in states[k])),
            rate.detach().requires_grad_(),
        )
        outcome = harm.outcome(*step.apart(here.weights_Q), held_out)[None]
        value = harm.score(outcome, held_out, None if maps is None else maps[k : k + 1]).sum() / len(losses_K)
        if adjoint:
            after = step(here, inner[k], k + 1, leaf_rate)
            value = value + sum((a * b).sum() for a, b in zip(adjoint, after, strict=True))
        *adjoint, more = _grad(value, *here, leaf_rate)
        slope_rate = slope_rate + more
        states.pop()
    return losses_K, adjoint[0], slope_rate


def _cut(state: Attacker) -> Attacker:
    return Attacker(*(part.detach() for part in state))


def _grad(value: Tensor, *leaves: Tensor) -> list[Tensor]:
    """Gradients, zero where a leaf does not matter (or a loss is beyond its cap)."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    grads = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads, strict=True)]


def check_second_derivatives(model: Any) -> None:
    """Refuse a model whose attention cannot be told to be plain.

    Raises:
        InputError: naming the implementation.
    """
    for module in model.modules():
        kind = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if kind not in (None, "eager", "sdpa"):
            raise InputError(
                "this attention has no second derivative, which MLAC's inner steps need",
                field="attn_implementation",
                found=kind,
                expected="eager, sdpa, or order: 1",
            )


def check_recomputation(model: Any) -> None:
    """Refuse gradient checkpointing: it would make a layer again with the model's weights, not the inner step's.

    Raises:
        InputError: naming what does the same here.
    """
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise InputError(
            "inner steps cannot be differentiated through gradient checkpointing",
            field="training.gradient_checkpointing",
            found=True,
            expected="false, and `recompute: true` of the defense",
        )


def plain_attention() -> AbstractContextManager[Any]:
    """Inside, `sdpa` attention is matrix products: its fused kernels have no second derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)
