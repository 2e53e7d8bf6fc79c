"""One body with N sets of weights: the layers that must know whose rows they see, and the weights as one matrix.

A layer without weights treats every row alike, so the rows of all trials go through the body as one batch [N·B, ...];
only layers with weights hold one set of them [N, ...] for each trial. The trials' losses are added: no trial's weights
touch another's loss, so the gradient of the sum is every trial's own gradient. All weights are one matrix [N, P], and
an optimizer step is a few operations on it.

Why not `torch.func.vmap`: its forward pass costs Python time in every operation, the greater part of a small MLP's step
(five trials of 4 x 48: 1.4 ms and more for a gradient, against 0.7 ms here for a whole step). An encoder gains nothing
from the difference, its step is arithmetic.

Suffixes: N trials · B rows of a batch · D features · C classes · P weights of a trial.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inoculate.attacks.sequential import EVAL_ROWS, Examples
from inoculate.attacks.vocabulary import Reachable
from inoculate.core.errors import InputError


def _linear(layer: nn.Linear, stack: Stack, x: Tensor) -> Tensor:
    x_NBD = x.reshape(stack.size, -1, x.shape[-1])
    weight_NDE = layer.weight.mT
    y = x_NBD @ weight_NDE if layer.bias is None else torch.baddbmm(layer.bias[:, None], x_NBD, weight_NDE)
    return y.view(*x.shape[:-1], -1)


def _layer_norm(layer: nn.LayerNorm, stack: Stack, x: Tensor) -> Tensor:
    y = F.layer_norm(x, layer.normalized_shape, eps=layer.eps).view(stack.size, -1, *layer.normalized_shape)
    y = y * layer.weight[:, None]
    return (y if layer.bias is None else y + layer.bias[:, None]).view(x.shape)


def _embedding(layer: nn.Embedding, stack: Stack, ids: Tensor) -> Tensor:
    """A single row of ids (BERT's positions) stands for every row, and each trial has its own vectors for it."""
    table_NVD = layer.weight
    rows = 1 if len(ids) == 1 else len(ids) // stack.size
    ids_NB = ids.expand(stack.size * rows, *ids.shape[1:]).reshape(stack.size, rows, -1)
    first = torch.arange(stack.size) * table_NVD.shape[1]
    y = F.embedding(ids_NB + first[:, None, None], table_NVD.flatten(0, 1))
    if layer.padding_idx is not None:  # this vector is not trained
        y = torch.where((ids_NB == layer.padding_idx)[..., None], y.detach(), y)
    return y.expand(-1, stack.rows, -1, -1).reshape(stack.size * stack.rows, *ids.shape[1:], -1)


def _reachable(layer: Reachable, stack: Stack, ids: Tensor) -> Tensor:
    """As `_embedding`, of the vectors that are weights."""
    table_NUD = layer.weight
    places_NB = layer.place[ids].clamp_min(0).view(stack.size, -1)
    first_N1 = torch.arange(stack.size)[:, None] * table_NUD.shape[1]
    return layer.mixed(ids, F.embedding(places_NB + first_N1, table_NUD.flatten(0, 1)).view(*ids.shape, -1))


LAYERS: Mapping[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
    Reachable: _reachable,
}


class Features(nn.Module):
    """A body that has been run already: its rows are features [B, D]."""

    def __init__(self, feature_size: int) -> None:
        super().__init__()
        self.feature_size = feature_size

    def forward(self, x: Tensor) -> Tensor:
        return x


class Stack:
    """A body and N sets of weights for it, the head's among them, as one matrix `weights_NP`."""

    def __init__(self, body: nn.Module, heads_NCD: Tensor) -> None:
        self.body = copy.deepcopy(body).eval()
        self.rows = 0
        owners = [layer for layer in self.body.modules() if next(layer.parameters(recurse=False), None) is not None]
        for layer in owners:
            if type(layer) not in LAYERS:
                expected = "layers of " + ", ".join(kind.__name__ for kind in LAYERS) + "; train_sequentially takes any"
                raise InputError("no batched form for this layer", found=type(layer).__name__, expected=expected)
            layer.forward = partial(LAYERS[type(layer)], layer, self)
        weights = dict(self.body.named_parameters())
        names = {id(weight): name for name, weight in weights.items()}
        self.places = [
            (layer, key, names[id(w)]) for layer in owners for key, w in layer.named_parameters(recurse=False)
        ]
        self.shapes = {name: weight.shape for name, weight in weights.items()} | {"head": heads_NCD.shape[1:]}
        self.bind(heads_NCD.new_empty(len(heads_NCD), sum(math.prod(shape) for shape in self.shapes.values())))
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(heads_NCD if name == "head" else weights[name])

    def bind(self, weights_NP: Tensor) -> None:
        """Compute with these weights from now on; whoever changes them in place changes what is computed."""
        self.weights_NP, self.size, self.grads_NP = weights_NP, len(weights_NP), torch.empty_like(weights_NP)
        self.leaves = {name: nn.Parameter(view) for name, view in self.views(weights_NP)}
        self.body_leaves = [leaf for name, leaf in self.leaves.items() if name != "head"]
        self.slots = [view for _, view in self.views(self.grads_NP)]
        for layer, key, name in self.places:
            setattr(layer, key, self.leaves[name])

    def views(self, matrix_NP: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The part of each weight in a matrix, by name, [N, *shape]."""
        parts = matrix_NP.split([math.prod(shape) for shape in self.shapes.values()], 1)
        for (name, shape), part in zip(self.shapes.items(), parts, strict=True):
            yield name, part.unflatten(1, shape)

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """[N, B, D] of inputs [N·B, ...], the rows of a trial together."""
        self.rows = len(next(iter(inputs.values()))) // self.size
        return self.body(**inputs).view(self.size, self.rows, -1)

    def losses_and_grad(self, batch: Examples, share_NB: Tensor) -> tuple[Tensor, Tensor]:
        """Every trial's loss [N], its rows weighted by `share_NB`, and the gradients [N, P], in place of the last.

        The head's part is written out (softmax less label, times features), the body's is autograd's: under a frozen
        body there is no graph at all.
        """
        features_NBD = self.features(batch.inputs)
        with torch.no_grad():
            head_NCD, labels_NB1 = self.leaves["head"], batch.labels.view(*share_NB.shape, 1)
            log_p_NBC = (features_NBD @ head_NCD.mT).log_softmax(-1)
            losses_N = -(log_p_NBC.gather(-1, labels_NB1)[..., 0] * share_NB).sum(1)
            share_NB1 = share_NB[..., None]
            error_NBC = log_p_NBC.exp_().mul_(share_NB1).scatter_add_(-1, labels_NB1, -share_NB1)
            torch.bmm(error_NBC.mT, features_NBD, out=self.slots[-1])
        if features_NBD.requires_grad:
            grads = torch.autograd.grad(features_NBD, self.body_leaves, error_NBC @ head_NCD, materialize_grads=True)
            torch._foreach_copy_(self.slots[:-1], grads)  # pyright: ignore[reportPrivateImportUsage]
        return losses_N, self.grads_NP

    @torch.no_grad()
    def accuracies(self, examples: Examples) -> list[float]:
        """Every trial's accuracy; NaN for one with a logit that is not finite."""
        hits_N, finite_N = torch.zeros(self.size), torch.ones(self.size, dtype=torch.bool)
        for chunk in examples.chunks(max(1, EVAL_ROWS // self.size)):
            inputs = {name: x.expand(self.size, *x.shape).flatten(0, 1) for name, x in chunk.inputs.items()}
            logits_NBC = self.features(inputs) @ self.leaves["head"].mT
            hits_N += (logits_NBC.argmax(-1) == chunk.labels).sum(1)
            finite_N &= logits_NBC.isfinite().flatten(1).all(1)
        return (hits_N.double() / len(examples)).where(finite_N, math.nan).tolist()

    def weights_of(self, place: int) -> dict[str, Tensor]:
        """A copy of one trial's weights, by name."""
        return {name: leaf[place].detach().clone() for name, leaf in self.leaves.items()}
