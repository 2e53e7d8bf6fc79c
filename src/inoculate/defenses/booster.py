r"""Booster: shrink the gain that one harmful step would bring.

Huang et al., "Booster: Tackling Harmful Fine-tuning for Large Language Models via
Attenuating Harmful Perturbation", arXiv:2409.01586.

With f the loss on alignment data and h the loss on harmful data, over trainable weights w:

    min_w  f(w) + λ [ h(w) − h(w − α ĝ(w)) ],      ĝ = ∇h(w) / ‖∇h(w)‖₂            (objective)
    ∇f(w) + λ [ ∇h(w) − ∇h(w − α ĝ) ]              ĝ held fixed                      (update)

    paper  field  unit                     authors' default
    λ      lam    –                        5
    α      alpha  L2 length, weight space  0.1

Cost per step: 3 forward-backward passes, 2 gradient copies, 1 weight copy.
Departures from the paper and results beside it: docs/methods/booster.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat

from inoculate.core.types import DATA, WEIGHTS, Batches, Value
from inoculate.models.weights import Grads, add_to_grad, combine, loss_and_grad, norm, shifted

if TYPE_CHECKING:
    from torch import nn

_NO_DIRECTION = 1e-7
"""Added to ‖∇h‖, as in the authors' code, so that a vanished gradient gives no step instead of a division by zero."""


class Booster(Value):
    """Alignment with an attenuated harmful perturbation. λ = 0 is SFT."""

    name: Literal["booster"] = "booster"
    lam: NonNegativeFloat = 5.0
    alpha: PositiveFloat = 0.1
    needs: ClassVar[Mapping[str, int]] = {"align": 1, "harmful": 1}
    parallel: ClassVar[frozenset[str]] = frozenset({DATA, WEIGHTS})

    def backward(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """Add the update to `.grad`.

        Returns:
            `align_loss` f(w), `harmful_loss` h(w), `harmful_drop` h(w) − h(w − α ĝ), `harmful_grad_norm` ‖∇h(w)‖₂.
        """
        (align,) = batches["align"]
        f, grad_f = loss_and_grad(model, align)
        terms, measured = self.beyond(model, batches)
        add_to_grad(model, combine((1.0, grad_f), *terms))
        return {"align_loss": f, **measured}

    def beyond(self, model: nn.Module, batches: Batches) -> tuple[list[tuple[float, Grads]], dict[str, float]]:
        """What is added to ∇f, as (coefficient, gradient) pairs, and what was measured on the way."""
        (harmful,) = batches["harmful"]
        h, grad_h = loss_and_grad(model, harmful)
        length = norm(grad_h)
        with shifted(model, along=grad_h, by=-self.alpha / (length + _NO_DIRECTION)):  # w − α ĝ
            h_after, grad_h_after = loss_and_grad(model, harmful)

        measured = {"harmful_loss": h, "harmful_drop": h - h_after, "harmful_grad_norm": length}
        return [(self.lam, grad_h), (-self.lam, grad_h_after)], measured
