r"""Adversary calibration: the best linear map over an adversary's logits, granted to it for free.

A defense that makes a model answer with the labels flipped has blocked nothing: whoever attacks it flips them back.
So the harmful loss is measured after the map that serves the adversary best (Henderson et al., arXiv:2211.14946, §3):

    l(z) = min_W  CE(z W, y),      W ∈ [−box, box]^{C×C},  over the rows of one batch.

The problem is convex and its box does not depend on z, so the gradient of the minimum is the partial gradient with the
best W held fixed (the envelope theorem, Danskin 1967). Nothing has to be differentiated through the solver, which runs
without a graph. W = 0 is allowed: l never exceeds log C, however wrong the adversary is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_STRIDES = (1.0, 0.5, 0.25, 0.0625, 0.0)
"""Of a Newton step; 0 stands still, so that no iteration makes the loss larger."""


@torch.no_grad()
def calibration(
    logits_KBC: Tensor, labels_B: Tensor, box: float = 1.0, tolerance: float = 1e-6, max_iterations: int = 50
) -> Tensor:
    """The best maps W [K, C, C] for K sets of logits on one batch, solved side by side.

    Projected Newton (Bertsekas 1982): entries at a bound that the slope pushes outward are held there, the others take
    a Newton step of the best of a few lengths, the one that ends at the first bound among them; a plain gradient step
    stands by in case none helps. Logits that say nearly the same make the problem flat, where first-order methods took
    500 iterations. In float64 on the CPU, wherever the logits are: float32 would not settle.

    Args:
        box: entries of W are in [−box, box]; the paper's is 1. A small box cannot undo that logits were shrunk.
        tolerance: it ends when no slope that is free to be followed is larger.
    """
    Z, labels_B, (K, B, C) = logits_KBC.cpu().double(), labels_B.cpu(), logits_KBC.shape
    target_BC = F.one_hot(labels_B, C).to(Z.dtype)
    strides = torch.tensor(_STRIDES, dtype=Z.dtype)[:, None, None, None]
    unit = torch.eye(C * C, dtype=Z.dtype)
    rate = 2 / (Z * Z).sum((1, 2), keepdim=True).div(B).clamp_min(torch.finfo(Z.dtype).tiny)
    W = Z.new_zeros(K, C, C)
    for _ in range(max_iterations):
        P = (Z @ W).softmax(-1)
        slope = Z.mT @ (P - target_BC) / B
        if float(((W - slope).clamp(-box, box) - W).abs().max()) <= tolerance:
            break
        spread_KBCC = torch.diag_embed(P) - P[..., None] * P[..., None, :]
        curve = torch.einsum("kbi,kbj,kbcd->kicjd", Z, Z, spread_KBCC).reshape(K, C * C, C * C) / B
        free = ~(((box <= W) & (slope < 0)) | ((-box >= W) & (slope > 0))).flatten(1)
        curve = torch.where(free[:, :, None] & free[:, None, :], curve, 0.0)
        ridge = 1e-6 * curve.diagonal(dim1=1, dim2=2).amax(1).clamp_min(1e-12)
        curve = curve + unit * torch.where(free, ridge[:, None], 1.0)[:, None, :]
        step = torch.linalg.solve(curve, torch.where(free, slope.flatten(1), 0.0)).view_as(W)
        room = torch.where(step > 0, W + box, box - W) / step.abs().clamp_min(1e-300)
        to_bound = room.where(step != 0, torch.inf).amin((1, 2), keepdim=True).clamp_max(1.0)
        tried = torch.cat([W - strides * step, (W - to_bound * step)[None], (W - rate * slope)[None]]).clamp(-box, box)
        W = tried[_losses(Z, tried, labels_B).argmin(0), torch.arange(K)]
    return W.to(logits_KBC)


def _losses(Z: Tensor, maps_SKCC: Tensor, labels_B: Tensor) -> Tensor:
    """Mean cross-entropy [S, K] under S sets of maps."""
    logits_SKBC = Z @ maps_SKCC
    right = logits_SKBC.gather(-1, labels_B[:, None].expand(*logits_SKBC.shape[:-1], 1)).squeeze(-1)
    return (logits_SKBC.logsumexp(-1) - right).mean(-1)


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
