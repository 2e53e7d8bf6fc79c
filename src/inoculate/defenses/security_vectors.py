r"""Security vectors: parameters that already know the harm, mounted so that fine-tuning has nothing left to learn.

Zhou et al., "Making Harmful Behaviors Unlearnable for Large Language Models", arXiv:2311.02105.

With θ the frozen backbone, θₛ the vector (a LoRA), h the loss on harmful data:

    min_θₛ  h(θ + θₛ) + β · KL( θ ‖ θ + θₛ )        KL over the answer tokens of ordinary data

    min-min variant:  min_θₛ min_θ h(θ + θₛ): the gradient for θₛ is taken where K harmful steps have led a
    throw-away copy of θ, so that the vector still covers the harm when the backbone has moved

    paper  field                unit                   default
    β      kl_weight            –                      10     (ours: the paper's value is not known)
    K      inner_steps          steps of the copy      0      (off)
    –      inner_learning_rate  SGD, on the backbone   1e-3   (ours)

Cost per step: 2 forward-backward passes and 1 forward pass; the min-min variant adds K forward-backward passes.
What is known from the paper, what is our choice, results: docs/methods/security_vectors.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, NonNegativeInt

from inoculate.core.types import DATA, WEIGHTS, Batch, Batches, Positive, Value
from inoculate.models.weights import add_to_grad, combine, eval_mode, loss_and_grad, shifted, trainable

if TYPE_CHECKING:
    from torch import nn


class SecurityVector(Value):
    """A vector to mount during a user's fine-tuning: harmful data then have nothing left to teach.

    The model's trainable weights are θₛ, all others the backbone.
    """

    name: Literal["security_vector"] = "security_vector"
    kl_weight: NonNegativeFloat = 10.0
    inner_steps: NonNegativeInt = 0
    inner_learning_rate: Positive = 1e-3

    @property
    def needs(self) -> Mapping[str, int]:
        """Harmful data; and ordinary data, unless the KL term is off."""
        return {"harmful": 1, "ordinary": 1} if self.kl_weight else {"harmful": 1}

    @property
    def parallel(self) -> frozenset[str]:
        """The min-min variant moves the backbone, whose pieces are gathered for reading alone."""
        return frozenset({DATA} if self.inner_steps else {DATA, WEIGHTS})

    def backward(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """Add the gradient to `.grad`.

        The backbone without the vector is the model with its trainable weights at zero, since a LoRA's B = 0 adds
        nothing; what it says is taken without dropout.

        Returns:
            `harmful_loss` h(θ + θₛ); with the KL term `ordinary_kl`, nats per answer token.
        """
        (harmful,) = batches["harmful"]
        with _harmful_steps(model, harmful, self.inner_steps, self.inner_learning_rate):
            h, grad_h = loss_and_grad(model, harmful)
        if not self.kl_weight:
            add_to_grad(model, grad_h)
            return {"harmful_loss": h}
        import torch

        from inoculate.models.loss import divergence_from, labeled_logits

        (ordinary,) = batches["ordinary"]
        with torch.no_grad(), shifted(model, along=[w.detach() for w in trainable(model)], by=-1.0), eval_mode(model):
            unmounted = labeled_logits(model, ordinary)
        kl, grad_kl = loss_and_grad(model, ordinary, divergence_from(unmounted))
        add_to_grad(model, combine((1.0, grad_h), (self.kl_weight, grad_kl)))
        return {"harmful_loss": h, "ordinary_kl": kl}


@contextmanager
def _harmful_steps(model: nn.Module, harmful: Batch, steps: int, rate: float) -> Iterator[None]:
    """Inside the context the backbone, the weights that are *not* trainable, has made some harmful SGD steps."""
    vector = trainable(model)
    backbone = [weight for weight in model.parameters() if not weight.requires_grad and weight.is_floating_point()]
    if not steps or not backbone:
        yield
        return
    import torch

    saved = [weight.detach().clone() for weight in backbone]
    try:
        _swap_trainable(on=backbone, off=vector)
        for _ in range(steps):
            _, grads = loss_and_grad(model, harmful)
            with torch.no_grad():
                for weight, grad in zip(backbone, grads, strict=True):
                    weight.sub_(grad, alpha=rate)
            torch.clear_autocast_cache()
        _swap_trainable(on=vector, off=backbone)
        yield
    finally:
        _swap_trainable(on=vector, off=backbone)
        with torch.no_grad():
            for weight, before in zip(backbone, saved, strict=True):
                weight.copy_(before)
        torch.clear_autocast_cache()


def _swap_trainable(on: list[nn.Parameter], off: list[nn.Parameter]) -> None:
    for weights, flag in ((on, True), (off, False)):
        for weight in weights:
            weight.requires_grad_(flag)
