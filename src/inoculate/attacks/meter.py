"""What an attack has spent by a step: samples, tokens, FLOPs and time, counted and not estimated from averages."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from inoculate.attacks.search import Spent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from inoculate.data.batches import Feed


class Meter:
    """Follows one run.

    Args:
        harmful_samples: so many of the user's rows are harmful, the last, as `inoculate.data.mix.poisoned` puts them.
    """

    def __init__(self, harmful_samples: int) -> None:
        self._harmful = harmful_samples
        self._feed: Feed | None = None
        self._flops_per_token = 0.0
        self._counted, self._samples, self._tokens = 0, 0, 0
        self._training_s, self.looking_s = 0.0, 0.0
        self._since = time.monotonic()

    def fed(self, feeds: Mapping[str, Feed]) -> None:
        """Take note of the user's data; what a guard adds to them is the provider's cost."""
        self._feed = feeds["align"]

    @property
    def inside_s(self) -> float:
        """Seconds of training and of measuring; loading left out."""
        return self._training_s + self.looking_s

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Time inside is of measuring, and not of the attack."""
        began = time.monotonic()
        self._training_s += began - self._since
        try:
            yield
        finally:
            self._since = time.monotonic()
            self.looking_s += self._since - began

    def spent(self, model: nn.Module, step: int) -> Spent:
        """What the steps before `step` have cost; to be asked with growing steps, inside `looking`."""
        assert self._feed is not None
        if not self._counted:
            self._flops_per_token = flops_per_token(model)
            if step == 0:
                self._training_s = 0.0  # what came before the first step was loading
        clean = len(self._feed.rows) - self._harmful
        for at in range(self._counted, step):
            rows = self._feed.order.at(at)
            self._samples += sum(row >= clean for row in rows)
            self._tokens += sum(len(self._feed.rows[row].ids) for row in rows)
        self._counted = step
        return Spent(step, self._samples, self._tokens, self._tokens * self._flops_per_token, self._training_s)


def flops_per_token(model: nn.Module) -> float:
    """FLOPs of one training token: 2 N forward, 2 N for the gradient of activations, 2 N_trained for that of weights.

    N are the weights in matrix products: all but the input embeddings, unless the output's are the same. When all is
    trained that makes 6 N (Kaplan et al., arXiv:2001.08361, §2.1; attention's own products are left out, as there).
    Where only the head is trained, no gradient goes below it.
    """
    from inoculate.models.quantize import weight_count

    weights = {id(weight): weight for weight in model.parameters()}
    lookup = model.get_input_embeddings().weight  # type: ignore[operator,union-attr]
    head = model.get_output_embeddings()  # type: ignore[operator]
    tied = head is not None and head.weight is lookup
    matrices = [weight for weight in weights.values() if weight.ndim > 1 and (weight is not lookup or tied)]
    trained = [weight for weight in weights.values() if weight.requires_grad]
    in_products = sum(weight_count(weight) for weight in matrices)
    only_head = head is not None and not tied and all(weight is head.weight for weight in trained)
    learned = sum(weight.numel() for weight in matrices if weight.requires_grad)
    return 2.0 * in_products + (0.0 if only_head else 2.0 * in_products) + 2.0 * learned
