r"""Adversary calibration: the best linear map over an adversary's logits, granted to it for free.

A defense that makes a model answer with the labels flipped has blocked nothing: whoever attacks it flips them back.
So the harmful loss is measured after the map that serves the adversary best (Henderson et al., arXiv:2211.14946, §3):

    l(z) = min_W  CE(z W, y),      W ∈ [−box, box]^{C×C},  over the rows of one batch.

The problem is convex and its box does not depend on z, so the gradient of the minimum is the partial gradient with the
best W held fixed (the envelope theorem, Danskin 1967). Nothing has to be differentiated through the solver, which runs
without a graph. W = 0 is allowed: l never exceeds log C, however wrong the adversary is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_CHECKED_EVERY = 10


@torch.no_grad()
def calibration(
    logits_KBC: Tensor, labels_B: Tensor, box: float = 1.0, tolerance: float = 1e-6, max_iterations: int = 500
) -> Tensor:
    """The best maps W [K, C, C] for K sets of logits on one batch, solved side by side.

    Accelerated projected gradient with restarts (Nesterov 1983; O'Donoghue & Candès 2015), until no entry would move
    by more than `tolerance` in a plain step.

    Args:
        box: entries of W are in [−box, box]; the paper's is 1. A small box cannot undo that logits were shrunk.
    """
    Z, B = logits_KBC, len(labels_B)
    target_BC = F.one_hot(labels_B, Z.shape[-1]).to(Z.dtype)
    steepest = torch.linalg.matrix_norm(Z.mT @ Z / B, ord=2)[:, None, None] / 2  # the Hessian's largest eigenvalue
    rate = 1 / steepest.clamp_min(torch.finfo(Z.dtype).tiny)
    W = ahead = Z.new_zeros(len(Z), Z.shape[-1], Z.shape[-1])
    momentum = Z.new_ones(len(Z), 1, 1)
    for iteration in range(max_iterations):
        slope = Z.mT @ ((Z @ ahead).softmax(-1) - target_BC) / B
        before, W = W, (ahead - rate * slope).clamp(-box, box)
        moved = W - before
        uphill = ((ahead - W) * moved).sum((1, 2), keepdim=True) > 0
        faster = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        ahead = W + torch.where(uphill, 0.0, (momentum - 1) / faster) * moved
        momentum = torch.where(uphill, 1.0, faster)
        if iteration % _CHECKED_EVERY == 0 and _settled(Z, W, target_BC, rate, box) <= tolerance:
            break
    losses = F.cross_entropy((Z @ W).flatten(0, 1), labels_B.repeat(len(Z)), reduction="none")
    helped = losses.view(len(Z), B).mean(1) <= math.log(Z.shape[-1])
    return W * helped[:, None, None]


def calibrated_loss(logits_KBC: Tensor, labels_B: Tensor, box: float = 1.0, maps_KCC: Tensor | None = None) -> Tensor:
    """Calibrated cross-entropy [K] of K sets of logits on one batch: at most log C each, in nats.

    Its gradient is exact as far as the maps are.

    Args:
        maps_KCC: what `calibration` gave for these logits, where that is known.
    """
    if maps_KCC is None:
        maps_KCC = calibration(logits_KBC.detach(), labels_B, box)
    K, B, _ = logits_KBC.shape
    losses = F.cross_entropy((logits_KBC @ maps_KCC).flatten(0, 1), labels_B.repeat(K), reduction="none")
    return losses.view(K, B).mean(1)


def _settled(Z: Tensor, W: Tensor, target_BC: Tensor, rate: Tensor, box: float) -> float:
    slope = Z.mT @ ((Z @ W).softmax(-1) - target_BC) / Z.shape[1]
    return float(((W - rate * slope).clamp(-box, box) - W).abs().max())
