from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional as F
from torch.testing import assert_close

from inoculate.models.calibration import calibrated_loss, calibration


def problem(seed=0, K=3, B=32, C=2, scale=1.0):
    rng = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(K, B, C, generator=rng, dtype=torch.float64)
    return logits, torch.randint(0, C, (B,), generator=rng)


@pytest.mark.parametrize("box", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("C", [2, 4])
def test_finds_the_minimum_that_scipy_finds(box, C):
    logits, labels = problem(K=1, C=C)

    def loss(flat):
        w = torch.tensor(flat).view(C, C).requires_grad_()
        value = F.cross_entropy(logits[0] @ w, labels)
        value.backward()
        return value.item(), w.grad.flatten().numpy()

    found = minimize(
        loss, torch.zeros(C * C).double().numpy(), jac=True, bounds=[(-box, box)] * C**2, method="L-BFGS-B"
    )
    ours = calibration(logits, labels, box, tolerance=1e-10, max_iterations=15)
    assert ours.abs().max() <= box
    assert_close(calibrated_loss(logits, labels, box, ours).item(), float(found.fun), rtol=0, atol=1e-7)


@pytest.mark.parametrize("box", [1.0, 10.0])
def test_gradient_equals_finite_differences(box):
    logits, labels = problem()
    logits.requires_grad_()
    (grad,) = torch.autograd.grad(calibrated_loss(logits, labels, box).sum(), logits)

    def exactly(z):
        return calibrated_loss(z, labels, box, calibration(z, labels, box, 1e-12, 200)).sum()

    for seed in (101, 102, 103):  # along the logits themselves the slope is zero: W undoes their scale
        along = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            slope = (exactly(logits + 1e-5 * along) - exactly(logits - 1e-5 * along)) / 2e-5
        assert_close((grad * along).sum(), slope, rtol=1e-4, atol=1e-8)


def test_gradient_equals_that_through_the_solver():
    """Unrolled: a thousand plain projected steps with their graph."""
    logits, labels = problem(K=1, B=8)
    logits.requires_grad_()
    target = F.one_hot(labels, 2).double()
    w = torch.zeros(1, 2, 2, dtype=torch.float64)
    for _ in range(1000):
        w = (w - 0.5 * logits.mT @ ((logits @ w).softmax(-1) - target) / len(labels)).clamp(-1, 1)
    (through,) = torch.autograd.grad(F.cross_entropy((logits @ w)[0], labels), logits)
    maps = calibration(logits.detach(), labels, 1.0, 1e-10, 200)
    (ours,) = torch.autograd.grad(calibrated_loss(logits, labels, 1.0, maps).sum(), logits)
    assert_close(ours, through, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("C", [2, 5])
def test_never_exceeds_the_loss_of_knowing_nothing(scale, C):
    for seed in range(5):
        logits, labels = problem(seed, C=C, scale=scale)
        assert calibrated_loss(logits.float(), labels).max() <= math.log(C) + 1e-6


def test_flipped_labels_change_nothing():
    logits, labels = problem()
    assert_close(calibrated_loss(logits, 1 - labels), calibrated_loss(logits, labels), rtol=0, atol=1e-6)
    assert_close(calibrated_loss(-logits, labels), calibrated_loss(logits, labels), rtol=0, atol=1e-12)


def test_problems_do_not_see_each_other():
    logits, labels = problem(K=4)
    logits[1] *= 100
    alone = torch.cat([calibrated_loss(z[None], labels) for z in logits])
    assert_close(calibrated_loss(logits, labels), alone, rtol=0, atol=1e-6)
