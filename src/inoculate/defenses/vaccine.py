r"""Vaccine: alignment that holds under the worst small drift of the hidden embeddings.

Huang et al., "Vaccine: Perturbation-aware Alignment for Large Language Models against Harmful Fine-tuning Attack",
arXiv:2402.01109.

With e_l the output of the attention block of layer l (l = 1 … L) and L(w, ε) the loss on alignment data when ε_l is
added to every e_l:

    min_w  max_{‖ε‖ ≤ ρ}  L(w, ε)                                     (objective)
    ε_l = ρ g_l / ‖(g_1 … g_L)‖₂,        g_l = ∇_{e_l} L(w, 0)        (one norm over all layers, tokens and rows)
    ∇_w L(w, ε)                          ε held fixed                 (update)

    paper  field  unit                               authors' default
    ρ      rho    L2 length, hidden embeddings       2

`preset: booster-authors` has the ρ = 5 of Booster's comparison (arXiv:2409.01586).
Cost per step: 2 forward passes, 1 backward pass to the weights and 1 to the embeddings alone.
Departures from the paper and results beside it: docs/methods/vaccine.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeFloat

from inoculate.core import ranks
from inoculate.core.types import DATA, WEIGHTS, Batches, Preset
from inoculate.models.weights import add_to_grad, forked_rng, loss_and_grad, norm

if TYPE_CHECKING:
    from torch import Tensor, nn

_NO_DIRECTION = 1e-7
"""Added to ‖g‖, so that a vanished gradient gives no perturbation instead of a division by zero."""


class Vaccine(Preset):
    """Alignment under the worst perturbation of the attention blocks' outputs. ρ = 0 is SFT."""

    name: Literal["vaccine"] = "vaccine"
    rho: NonNegativeFloat = 2.0
    needs: ClassVar[Mapping[str, int]] = {"align": 1}
    parallel: ClassVar[frozenset[str]] = frozenset({DATA, WEIGHTS})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "booster-authors": {"rho": 5.0}}

    def backward(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """Add the update to `.grad`.

        Returns:
            `align_loss` L(w, 0), `perturbed_loss` L(w, ε), `hidden_grad_norm` ‖(g_1 … g_L)‖₂.

        Raises:
            InputError: a model without attention blocks.
        """
        import torch

        from inoculate.models.blocks import blocks_of, outputs_through
        from inoculate.models.loss import device_of, loss_of

        (align,) = batches["align"]
        attentions = [block.attention for block in blocks_of(model)]
        zeros: dict[int, Tensor] = {}

        def add_zero(layer: int, hidden: Tensor) -> Tensor:
            zero = zeros.setdefault(layer, torch.zeros_like(hidden, requires_grad=True))
            return hidden + zero

        with forked_rng(device_of(model)), outputs_through(attentions, add_zero):
            loss = loss_of(model, align)
            grads = torch.autograd.grad(loss, list(zeros.values()), materialize_grads=True)
        length = norm(grads, of_rows=True)
        push = {layer: grad * (self.rho / (length + _NO_DIRECTION)) for layer, grad in zip(zeros, grads, strict=True)}
        with outputs_through(attentions, lambda layer, hidden: hidden + push[layer]):
            perturbed, grad = loss_and_grad(model, align)
        add_to_grad(model, grad)
        return {"align_loss": ranks.total(loss.item()), "perturbed_loss": perturbed, "hidden_grad_norm": length}
