r"""SFT: alignment by supervised fine-tuning alone, the baseline of every paper here.

    min_w  f(w)                                  f: mean cross-entropy on the alignment data

Cost per step: 1 forward-backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from inoculate.core.types import DATA, WEIGHTS, Batches, Value
from inoculate.models.weights import add_to_grad, loss_and_grad

if TYPE_CHECKING:
    from torch import nn


class SFT(Value):
    """Plain supervised fine-tuning; also the objective of a user or an attacker on their own data."""

    name: Literal["sft"] = "sft"
    needs: ClassVar[Mapping[str, int]] = {"align": 1}
    parallel: ClassVar[frozenset[str]] = frozenset({DATA, WEIGHTS})

    def backward(self, model: nn.Module, batches: Batches) -> dict[str, float]:
        """Add ∇f to `.grad`; return `align_loss`, f at the present weights."""
        (align,) = batches["align"]
        f, grad_f = loss_and_grad(model, align)
        add_to_grad(model, grad_f)
        return {"align_loss": f}
