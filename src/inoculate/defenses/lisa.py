r"""Lisa: alternate between alignment data and the user's, and let neither phase run far.

Huang et al., "Lazy Safety Alignment for Large Language Models against Harmful Fine-tuning", arXiv:2405.18641.

With f the loss on alignment data, h on the user's data, phases of K₁ and K₂ steps taking turns:

    K₁ steps on  f(w) + ρ/2 ‖w − w̃‖²,        w̃: the weights at the end of the last user phase
    K₂ steps on  h(w) + ρ/2 ‖w − w̄‖²,        w̄: the weights at the end of the last alignment phase

Either anchor is where the present phase began. As in the authors' code, one optimizer serves both phases, and the
proximal term is left out of the first tenth of the steps.

    paper  field         unit   authors' default
    K₁     align_steps   steps  100
    K₂     user_steps    steps  900
    ρ      rho           –      1

Cost per step: 1 forward-backward pass; 1 copy of the trainable weights is kept.
Departures and results: docs/methods/lisa.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveInt

from inoculate.core.types import DATA, WEIGHTS, Batches, Rate, Value
from inoculate.models.sharding import cut
from inoculate.models.weights import Grads, add_to_grad, combine, loss_and_grad, norm, trainable

if TYPE_CHECKING:
    from torch import Tensor, nn


class Lisa(Value):
    """A guard of a user's fine-tuning: phases on alignment data in turn with the user's, under a proximal term."""

    name: Literal["lisa"] = "lisa"
    rho: NonNegativeFloat = 1.0
    align_steps: PositiveInt = 100
    user_steps: PositiveInt = 900
    proximal_from: Rate = 0.1
    """Share of the run after which the proximal term counts."""
    needs: ClassVar[Mapping[str, int]] = {"align": 1, "guide": 1}
    """`align`: the user's data, which is what is learned here; `guide`: the provider's alignment data."""
    parallel: ClassVar[frozenset[str]] = frozenset({DATA, WEIGHTS})

    def start(self, model: nn.Module, steps: int) -> Alternation:
        """A course that begins with an alignment phase."""
        return Alternation(self, model, steps)

    def backward(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """One step by itself: the first of an alignment phase, whose proximal term is zero."""
        return self.start(model, 1).backward(model, batches)


class Alternation:
    """Lisa on its way: which phase it is, and where that phase began."""

    def __init__(self, lisa: Lisa, model: nn.Module, steps: int) -> None:
        self.lisa, self.steps, self.step = lisa, steps, 0
        self._weights = trainable(model)
        self._anchor = self._here()

    def before_step(self, step: int) -> None:
        """Move on to a step; a phase that begins there leaves its anchor."""
        self.step = step
        if self._in_cycle in (0, self.lisa.align_steps):
            self._anchor = self._here()

    def backward(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """Add the phase's gradient to `.grad`.

        Returns:
            `align_loss` on the phase's own data, and `drift` ‖w − anchor‖².
        """
        aligning = self._in_cycle < self.lisa.align_steps
        (batch,) = batches["guide" if aligning else "align"]
        loss, grad = loss_and_grad(model, batch)
        away = combine((1.0, [weight.detach() for weight in self._weights]), (-1.0, self._anchor))
        ρ = self.lisa.rho if self.step >= self.lisa.proximal_from * self.steps else 0.0
        add_to_grad(model, combine((1.0, grad), (ρ, away)))
        return {"align_loss": loss, "drift": norm(away) ** 2}

    def tensors(self) -> dict[str, Tensor]:
        """The anchor."""
        return {str(i): tensor for i, tensor in enumerate(self._anchor)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with a saved anchor."""
        self._anchor = [cut(tensors[str(i)].to(weight.device), weight) for i, weight in enumerate(self._weights)]

    @property
    def _in_cycle(self) -> int:
        return self.step % (self.lisa.align_steps + self.lisa.user_steps)

    def _here(self) -> Grads:
        return [weight.detach().clone() for weight in self._weights]
