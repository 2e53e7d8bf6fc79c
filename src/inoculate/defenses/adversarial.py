r"""Adversarial training: what MLAC is without inner steps, and the baseline that it is compared with.

Henderson et al., arXiv:2211.14946, §4 (gradient reversal, as in Ganin & Lempitsky, arXiv:1409.7495). With L the desired
loss over weights θ and l the restricted loss under an adversary's head w:

    θ descends on  L − λ l,   w descends on  l

    paper  field                    unit   authors' default
    λ      lam                      –      1
    η_h    adversary_learning_rate  –      1e-4

As published there is neither calibration nor a bound: l may grow without end. Both can be asked for, and so can a head
that learns fast or is drawn afresh, since a slow head makes a weak adversary.

Cost per step: 2 forward-backward passes.
Departures and results: docs/methods/mlac.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeFloat

from inoculate.core.types import Batches, Positive, Value
from inoculate.models.weights import add_to_grad, combine, loss_and_grad

if TYPE_CHECKING:
    from torch import Tensor, nn


class AdversarialTraining(Value):
    """Ascend on the restricted loss of an adversary who does not fine-tune."""

    name: Literal["adversarial"] = "adversarial"
    lam: NonNegativeFloat = 1.0
    head: Literal["learned", "fresh"] = "learned"
    adversary_learning_rate: Positive = 1e-4
    """Adam's, of the learned head."""
    calibrated: bool = False
    box: Positive = 1.0
    """Bound of the calibration's entries."""
    cap: Positive | None = None
    """The harmful loss counts up to here, in nats; null: without a bound."""
    needs: ClassVar[Mapping[str, int]] = {"align": 1, "harmful": 1}

    def start(self, model: nn.Module, steps: int) -> Reversal:
        """The adversary at its beginning."""
        return Reversal(self, model)

    def backward(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """One step by itself, against an adversary at its beginning."""
        return self.start(model, 1).backward(model, batches)


class Reversal:
    """Adversarial training on its way: the head that learns what the model unlearns."""

    def __init__(self, adversarial: AdversarialTraining, model: nn.Module) -> None:
        from inoculate.models.adversary import HEAD, Adversary, Harm

        self.adversarial = adversarial
        self.harm = Harm(model, calibrated=adversarial.calibrated, box=adversarial.box, cap=adversarial.cap)
        learned = (HEAD,) if adversarial.head == "learned" else ()
        self.adversary = Adversary(adversarial.adversary_learning_rate, learned, {})

    def before_step(self, step: int) -> None:
        """The adversary's own step, on what it learned in the last."""
        self.adversary.step()

    def backward(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """Add ∇(L − λ l) to `.grad`; keep ∇l over the head for its next step.

        Returns:
            `align_loss` L and `harmful_loss` l.
        """
        import torch

        from inoculate.models.adversary import HEAD, weigh
        from inoculate.models.loss import device_of
        from inoculate.models.weights import forked_rng

        (align,), (harmful,) = batches["align"], batches["harmful"]
        f, grad_f = loss_and_grad(model, align)
        harm = self.harm
        with forked_rng(device_of(model)):
            fresh = harm.fresh_head()
            learned = self.adversarial.head == "learned"
            head = self.adversary.held.setdefault(HEAD, fresh) if learned else fresh
        θ, w = harm.start().requires_grad_(), head.clone().requires_grad_()
        (loss,) = harm.score(harm.outcome(θ, w, harmful)[None], harmful)
        grad_θ, grad_w = weigh(harmful, torch.autograd.grad(loss, (θ, w), materialize_grads=True, allow_unused=True))
        self.adversary.add(HEAD, grad_w)
        add_to_grad(model, combine((1, grad_f), (-self.adversarial.lam, harm.split(grad_θ))))
        return {"align_loss": f, "harmful_loss": loss.item()}

    def tensors(self) -> dict[str, Tensor]:
        """The adversary."""
        return self.adversary.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on against a saved adversary."""
        from inoculate.models.loss import device_of

        self.adversary.restore(tensors, device_of(self.harm.model))
