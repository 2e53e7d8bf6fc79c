"""The harmful loss as a function of weights and head, and the adversary who learns beside the model.

What MLAC and the adversarial training that it is compared with have in common.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inoculate.core.types import Batch
from inoculate.models.calibration import calibrated_loss, calibration
from inoculate.models.classifier import Classifier, inputs_of
from inoculate.models.loss import loss_of
from inoculate.models.weights import forked_rng
from inoculate.models.words import Words, words_of

HEAD, RATE = "head", "learning_rate"


class Harm:
    """The harmful loss of a model as a function of its trainable weights (one vector [P]) and of an adversary's head.

    Of a classifier it is the cross-entropy of the restricted task, under a head [C, D] that is none of the model's; of
    a language model that of the harmful answers, and there is no head.

    Args:
        calibrated: score it after the linear map over the logits that serves the adversary best; classifiers only.
        cap: what the score is cut off at, in nats; beyond it there is no gradient.
    """

    def __init__(self, model: nn.Module, *, calibrated: bool, box: float = 1.0, cap: float | None = None) -> None:
        self.classifier, self.box, self.cap = _classifier_in(model), box, cap
        self.calibrated = calibrated and self.classifier is not None
        self.model = model if self.classifier is not None else _Loss(model)
        prefix = "" if self.classifier is not None else "model."
        named = [(prefix + name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        self.names, self.weights = [name for name, _ in named], [weight for _, weight in named]
        self._words: dict[int, Words] = {}
        self._tied = len(list(self.model.named_parameters(remove_duplicate=False))) > len(list(self.model.parameters()))

    def reach(self, batches: Iterable[Batch]) -> None:
        """From here on no other batches are given: of an encoder's word vectors, count as weights those they ask for.

        Exact, since the others have no gradient; P is smaller by them.
        """
        found = words_of(self.classifier, batches) if self.classifier is not None else None
        if found is not None:
            table, words = found
            at = next(i for i, weight in enumerate(self.weights) if weight is table)
            self._words = {at: words}

    def start(self) -> Tensor:
        """The trainable weights as they are, [P]."""
        return torch.cat([weight.detach().reshape(-1) for weight in self._moving()])

    def split(self, flat_P: Tensor) -> list[Tensor]:
        """The vector as tensors of the weights' shapes, with zeros for word vectors out of reach."""
        parts = self._parts(flat_P)
        return [self._words[i].whole(part) if i in self._words else part for i, part in enumerate(parts)]

    def fresh_head(self) -> Tensor:
        """A head drawn from the RNG as `nn.Linear` draws one, [C, D]; of a language model an empty tensor."""
        like = self.weights[0]
        if self.classifier is None:
            return like.new_zeros(0)
        C, D = self.classifier.restricted_classes, self.classifier.feature_size
        return like.new_empty(C, D, requires_grad=False).uniform_(-(D**-0.5), D**-0.5)

    def logits(self, flat_P: Tensor, head: Tensor, batch: Batch) -> Tensor:
        """A classifier's logits [B, C] of the restricted task."""
        return self._call(flat_P, {**inputs_of(batch), "head": head})

    def loss(self, flat_P: Tensor, head: Tensor, batch: Batch) -> Tensor:
        """The loss on which an attacker steps: neither calibrated nor cut off, and unweighted."""
        if self.classifier is not None:
            return F.cross_entropy(self.logits(flat_P, head, batch), batch["labels"])
        return self._call(flat_P, {"batch": {name: t for name, t in batch.items() if name != "loss_weight"}})

    def outcome(self, flat_P: Tensor, head: Tensor, batch: Batch) -> Tensor:
        """What `score` needs of one state: a classifier's logits [B, C], a language model's loss (0-dim)."""
        return self.logits(flat_P, head, batch) if self.classifier is not None else self.loss(flat_P, head, batch)

    def maps(self, outcomes: Tensor, batch: Batch) -> Tensor | None:
        """The calibrations [K, C, C] of stacked outcomes."""
        return calibration(_at_least_float32(outcomes.detach()), batch["labels"], self.box) if self.calibrated else None

    def score(self, outcomes: Tensor, batch: Batch, maps_KCC: Tensor | None = None) -> Tensor:
        """Held-out harmful losses [K] of stacked outcomes: calibrated and cut off as asked for."""
        if self.classifier is None:
            losses_K = outcomes
        elif self.calibrated:
            losses_K = calibrated_loss(_at_least_float32(outcomes), batch["labels"], self.box, maps_KCC)
        else:
            K, B, _ = outcomes.shape
            rows = F.cross_entropy(outcomes.flatten(0, 1), batch["labels"].repeat(K), reduction="none")
            losses_K = rows.view(K, B).mean(1)
        return losses_K if self.cap is None else losses_K.clamp_max(self.cap)

    def _call(self, flat_P: Tensor, inputs: dict[str, Any]) -> Tensor:
        """One forward pass. The RNG is forked, so that every pass of a step sees the same dropout mask."""
        named = dict(zip(self.names, self._parts(flat_P), strict=True))
        for words in self._words.values():
            inputs = {**inputs, "input_ids": words.place[inputs["input_ids"]]}
        with forked_rng(flat_P.device):
            # looking for tied weights takes a fourteenth of a small model's meta-step
            return torch.func.functional_call(self.model, named, (), inputs, tie_weights=self._tied)

    def _moving(self) -> list[Tensor]:
        return [self._words[i].of(w) if i in self._words else w for i, w in enumerate(self.weights)]

    def _parts(self, flat_P: Tensor) -> list[Tensor]:
        """The vector as tensors of the shapes of what moves."""
        shapes = [
            (len(self._words[i].tokens), *w.shape[1:]) if i in self._words else w.shape
            for i, w in enumerate(self.weights)
        ]
        parts = flat_P.split([math.prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


class _Loss(nn.Module):
    """A language model's loss as a module, so that it can be called with other weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return loss_of(self.model, batch)


def _classifier_in(model: Any) -> Classifier | None:
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return model if isinstance(model, Classifier) else None


class Adversary:
    """What of the adversary is learned while the model is defended: its head, its inner learning rate.

    It descends on the harmful loss on which the defense ascends, by Adam, one step for every step of the defense.

    Args:
        learned: names of the tensors that learn; the others stay as they are.
        bounds: name → what a tensor is clamped to after each step.
    """

    def __init__(
        self, learning_rate: float, learned: tuple[str, ...], bounds: Mapping[str, tuple[float, float]]
    ) -> None:
        self.learning_rate, self.learned, self.bounds = learning_rate, learned, bounds
        self.held: dict[str, Tensor] = {}
        self._pending: dict[str, Tensor] = {}
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}
        self._steps = 0

    def add(self, name: str, grad: Tensor) -> None:
        """Add a gradient, to be used by the next `step`; of a tensor that does not learn it is dropped."""
        if name in self.learned:
            self._pending[name] = self._pending[name] + grad if name in self._pending else grad

    def step(self) -> None:
        """Take the step that the gradients since the last one ask for, if there are any."""
        if not self._pending:
            return
        self._steps += 1
        for name, grad in self._pending.items():
            first, second = self._moments.get(name, (torch.zeros_like(grad), torch.zeros_like(grad)))
            self._moments[name] = first, second = torch.lerp(grad, first, 0.9), torch.lerp(grad**2, second, 0.999)
            upward = first / (1 - 0.9**self._steps)
            root = (second / (1 - 0.999**self._steps)).sqrt() + 1e-8
            moved = self.held[name] - self.learning_rate * upward / root
            self.held[name] = moved.clamp(*self.bounds[name]) if name in self.bounds else moved
        self._pending = {}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold."""
        moments = {
            f"{which}.{name}": moment
            for name, pair in self._moments.items()
            for which, moment in zip(("first", "second"), pair, strict=True)
        }
        held = {f"held.{name}": tensor for name, tensor in self.held.items()}
        pending = {f"pending.{name}": tensor for name, tensor in self._pending.items()}
        return {**held, **pending, **moments, "steps": torch.tensor(self._steps)}

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from what `tensors` gave, on the model's device: a checkpoint is read to the processor."""
        of = {
            kind: {name.partition(".")[2]: t.to(device) for name, t in tensors.items() if name.startswith(f"{kind}.")}
            for kind in ("held", "pending", "first", "second")
        }
        self.held, self._pending = dict(of["held"]), dict(of["pending"])
        self._moments = {name: (of["first"][name], of["second"][name]) for name in of["first"]}
        self._steps = int(tensors["steps"])


def weigh(batch: Batch, grads: Sequence[Tensor]) -> list[Tensor]:
    """Gradients times the batch's `loss_weight`, if it has one."""
    weight = batch.get("loss_weight")
    return list(grads) if weight is None else [grad * weight.to(grad.device) for grad in grads]
