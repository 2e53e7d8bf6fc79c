r"""RepNoise: push what the model makes of harmful answers towards noise, at every layer.

Rosati et al., "Representation Noising: A Defence Mechanism Against Harmful Finetuning", arXiv:2405.14577.

With f the loss on alignment data; a_l the output of the MLP of layer l, before it is added to the residual stream, at
those tokens of a harmful answer that its safe counterpart does not have in the same place; h_l the cross-entropy of
these tokens when the model's head reads layer l:

    min_w  f(w)  +  β · mean_l MMD²(a_l, N(0, I))  −  α · log mean_l h_l(w)        (appendix B)

MMD² is under the sum of five Gaussian kernels, their widths factors of two apart around the mean squared distance.

    paper  field   authors' default
    α      alpha   1      weight of the ascent
    β      beta    0.001  weight of the noise

`preset: booster-authors` has the α = 0.1, β = 0.001 of Booster's comparison (arXiv:2409.01586).
Cost per step: 2 forward-backward passes; the head at every layer; distances between all pairs of tokens at every layer.
Departures from the paper and its code, and results: docs/methods/repnoise.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeFloat

from inoculate.core.types import DATA, WEIGHTS, Batches, Preset
from inoculate.models.weights import Grads, add_to_grad, combine, loss_and_grad

if TYPE_CHECKING:
    from torch import nn


class RepNoise(Preset):
    """Alignment that removes what layers know of harmful answers. α = β = 0 is SFT."""

    name: Literal["repnoise"] = "repnoise"
    alpha: NonNegativeFloat = 1.0
    beta: NonNegativeFloat = 0.001
    needs: ClassVar[Mapping[str, int]] = {"align": 1, "harmful": 1, "safe": 1}
    """`safe`: safe answers to the prompts of `harmful`, row by row. By default the refusals that belong to them."""
    parallel: ClassVar[frozenset[str]] = frozenset({DATA, WEIGHTS})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "booster-authors": {"alpha": 0.1}}

    def backward(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """Add the gradient to `.grad`.

        Returns:
            `align_loss` f, `harmful_loss` mean_l h_l, `noise_distance` mean_l MMD².

        Raises:
            InputError: harmful and safe rows that do not answer the same prompts; a model without an MLP to hook.
        """
        (align,) = batches["align"]
        f, grad_f = loss_and_grad(model, align)
        terms, measured = self.beyond(model, batches)
        add_to_grad(model, combine((1.0, grad_f), *terms))
        return {"align_loss": f, **measured}

    def beyond(self, model: nn.Module, batches: Batches) -> tuple[list[tuple[float, Grads]], dict[str, float]]:
        """What is added to ∇f, as (coefficient, gradient) pairs, and what was measured on the way."""
        from inoculate.models.noising import Noising

        (harmful,), (safe,) = batches["harmful"], batches["safe"]
        noising = Noising(safe, alpha=self.alpha, beta=self.beta)
        _, grad_h = loss_and_grad(model, harmful, noising)
        return [(1.0, grad_h)], {"harmful_loss": noising.harmful_loss, "noise_distance": noising.distance}
