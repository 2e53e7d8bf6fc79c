r"""MLAC: make the weights a bad start for whoever fine-tunes them towards the restricted task.

Henderson, Mitchell, Manning, Jurafsky & Finn, "Self-Destructing Models: Increasing the Costs of Harmful Dual Uses of
Foundation Models", arXiv:2211.14946.

With L the desired loss over weights θ, and an adversary φ = (head w, inner learning rate α) who takes K steps of
fine-tuning on the restricted task from θ⁰ = θ, w⁰ = w, whose loss l on held-out restricted data is measured on the way:

    H(θ, φ) = 1/(K+1) Σ_{k=0..K} l(θᵏ, wᵏ)
    θ descends on  L − λ H,   φ descends on  H                                       (Algorithm 1)

Second order: θᵏ depends on θ through every step before it, and so does the gradient. l is calibrated: measured after
the linear map over the logits that serves the adversary best (see `inoculate.models.calibration`).

    paper    field                    unit                     authors' default
    λ        lam                      –                        1
    K        inner_steps              attacker's steps         16
    α        inner_learning_rate      –                        3e-4 at the start, learned in [1e-6, 1e-2]
    w        head                     –                        learned (their code for BERT: fresh)
    η_h      adversary_learning_rate  –                        1e-4
    –        inner_batch_sizes        rows                     12, 24, 48

Cost per step: one forward-backward for L; per inner step one, its second derivative, and the held-out forward.
Departures from paper and code, each numbered, and results: docs/methods/mlac.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from inoculate.core.errors import InputError
from inoculate.core.types import Batch, Batches, Positive, Value
from inoculate.models.weights import add_to_grad, combine, loss_and_grad

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_BOUNDS = (1e-6, 1e-2)
"""Of a learned inner learning rate, as published."""


class MLAC(Value):
    """Meta-learned adversarial censoring."""

    name: Literal["mlac"] = "mlac"
    lam: NonNegativeFloat = 1.0
    inner_steps: NonNegativeInt = 16
    """0 leaves adversarial training."""
    inner_optimizer: Literal["adam", "sgd"] = "adam"
    inner_learning_rate: Positive = 3e-4
    inner_learning_rate_mode: Literal["learned", "drawn", "fixed"] = "learned"
    """`drawn`: each meta-step multiplies it by a factor from 1/3 to 3, log-uniform."""
    inner_epsilon: Positive = 1e-8
    """Adam's ε in the inner loop. Small, the first step is lr · sign(g), which has no second-order signal."""
    inner_head_factor: Positive = 1.0
    """The head's inner learning rate over the body's."""
    inner_max_grad_norm: Positive = 100.0
    inner_batch_sizes: tuple[PositiveInt, ...] = ()
    """Each inner step draws its size from these and its rows from the meta-step's K batches; empty: a batch each."""
    order: Literal[1, 2] = 2
    """1 drops the second derivative: an ablation."""
    head: Literal["learned", "fresh"] = "learned"
    adversary_learning_rate: Positive = 1e-4
    """Adam's, of the learned head and inner learning rate."""
    calibrated: bool = True
    """Of classifiers; a language model's loss has no calibration."""
    box: Positive = 1.0
    """Bound of the calibration's entries."""
    cap: Positive | None = Field(default=None)
    """The harmful loss counts up to here, in nats; null: without a bound, for language models up to log V."""
    recompute: bool = False
    """Keep no graph of the inner steps but make them again, one by one, on the way back: memory of one step, not K."""

    @model_validator(mode="after")
    def _starts_in_bounds(self) -> MLAC:
        low, high = _BOUNDS
        if self.inner_learning_rate_mode == "learned" and not low <= self.inner_learning_rate <= high:
            raise ValueError(f"a learned inner_learning_rate is kept in [{low:g}, {high:g}]; it must start there")
        return self

    @property
    def needs(self) -> Mapping[str, int]:
        """K batches of the adversary's own, beside the two on which losses are measured."""
        return {"align": 1, "harmful": 1} | ({"adversary": self.inner_steps} if self.inner_steps else {})

    def start(self, model: nn.Module, steps: int) -> Censoring:
        """The adversary at its beginning."""
        return Censoring(self, model)

    def backward(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """One step by itself, against an adversary at its beginning."""
        return self.start(model, 1).backward(model, batches)


class Censoring:
    """MLAC on its way: the adversary that gets stronger as the model is censored."""

    def __init__(self, mlac: MLAC, model: nn.Module) -> None:
        from inoculate.models.adversary import HEAD, RATE, Adversary, Harm
        from inoculate.models.inner_loop import check_recomputation, check_second_derivatives
        from inoculate.models.loss import log_vocabulary

        if mlac.order == 2 and mlac.inner_steps:
            check_second_derivatives(model)
        if mlac.inner_steps:
            check_recomputation(model)
        self.mlac = mlac
        cap = mlac.cap if mlac.cap is not None else log_vocabulary(model)
        self.harm = Harm(model, calibrated=mlac.calibrated, box=mlac.box, cap=cap)
        if mlac.inner_batch_sizes and self.harm.classifier is None:
            raise InputError("of a language model, each inner step takes one batch", field="defense.inner_batch_sizes")
        learns = {HEAD: mlac.head == "learned", RATE: mlac.inner_learning_rate_mode == "learned"}
        learned = tuple(name for name, does in learns.items() if does)
        self.adversary = Adversary(mlac.adversary_learning_rate, learned, {RATE: _BOUNDS})

    def before_step(self, step: int) -> None:
        """The adversary's own step, on what it learned in the last."""
        self.adversary.step()

    def backward(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """Add ∇(L − λ H) to `.grad`; keep ∇H over the adversary for its next step.

        Returns:
            `align_loss` L, `harmful_loss` H, and the held-out harmful loss before (`harmful_loss_first`) and after
            (`harmful_loss_last`) the inner steps.
        """
        from inoculate.models.adversary import HEAD, RATE, weigh

        (align,), (harmful,) = batches["align"], batches["harmful"]
        f, grad_f = loss_and_grad(model, align)
        losses, grads, rate = self._harm(model, harmful, batches.get("adversary", ()))
        grad_θ, grad_head, grad_rate = weigh(harmful, grads)
        self.adversary.add(HEAD, grad_head)
        self.adversary.add(RATE, grad_rate)
        add_to_grad(model, combine((1, grad_f), (-self.mlac.lam, self.harm.split(grad_θ))))
        told = {"harmful_loss": losses.mean(), "harmful_loss_first": losses[0], "harmful_loss_last": losses[-1]}
        taken = {"inner_learning_rate": float(rate)} if self.mlac.inner_steps else {}
        return {"align_loss": f, **{name: float(value) for name, value in told.items()}, **taken}

    def tensors(self) -> dict[str, Tensor]:
        """The adversary."""
        return self.adversary.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on against a saved adversary."""
        from inoculate.models.loss import device_of

        self.adversary.restore(tensors, device_of(self.harm.model))

    def _harm(self, model: nn.Module, harmful: Batch, inner: Sequence[Batch]) -> tuple[Tensor, list[Tensor], Tensor]:
        """The K + 1 held-out losses; the gradient of their mean over weights [P], head and inner learning rate; and
        that rate as it was in this meta-step."""
        import torch

        from inoculate.models.inner_loop import Attacker, InnerStep, plain_attention, sweep, sweep_again
        from inoculate.models.loss import device_of
        from inoculate.models.weights import forked_rng

        mlac, device = self.mlac, device_of(model)
        with forked_rng(device):
            head, rate, inner = self._head(), self._rate(device), self._sized(inner)
        self.harm.reach([harmful, *inner])
        step = InnerStep(
            self.harm,
            head.shape,
            mlac.inner_optimizer,
            head_factor=mlac.inner_head_factor,
            max_norm=mlac.inner_max_grad_norm,
            epsilon=mlac.inner_epsilon,
            second_order=mlac.order == 2,
        )
        weights = torch.cat([self.harm.start(), head.reshape(-1)])
        begin = Attacker(weights, torch.zeros_like(weights), torch.zeros_like(weights))
        with plain_attention() if mlac.order == 2 and inner else nullcontext():
            losses, grad, grad_rate = (sweep_again if mlac.recompute else sweep)(step, begin, rate, inner, harmful)
        return losses, [*step.apart(grad), grad_rate], rate.detach()

    def _head(self) -> Tensor:
        """The adversary's head: its own, or a fresh draw."""
        from inoculate.models.adversary import HEAD

        fresh = self.harm.fresh_head()
        return self.adversary.held.setdefault(HEAD, fresh) if self.mlac.head == "learned" else fresh

    def _rate(self, device: torch.device) -> Tensor:
        """The inner learning rate of this meta-step."""
        import torch

        from inoculate.models.adversary import RATE

        rate = self.adversary.held.setdefault(RATE, torch.tensor(self.mlac.inner_learning_rate, device=device))
        if self.mlac.inner_learning_rate_mode != "drawn":
            return rate.clone()
        return rate * 3 ** (2 * torch.rand((), device=device) - 1)

    def _sized(self, inner: Sequence[Batch]) -> Sequence[Batch]:
        """The inner batches; with sizes to draw from, each a draw from the rows of all."""
        import torch

        sizes = self.mlac.inner_batch_sizes
        if not sizes or not inner:
            return inner
        rows = {name: torch.cat([batch[name] for batch in inner]) for name in inner[0] if name != "loss_weight"}
        count = len(rows["labels"])
        drawn = [torch.randperm(count)[: sizes[int(torch.randint(len(sizes), ()))]] for _ in inner]
        return [{name: tensor[at] for name, tensor in rows.items()} for at in drawn]
