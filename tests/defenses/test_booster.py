from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from tests.conftest import Bowls, bowl
from torch.testing import assert_close

from inoculate.defenses import SFT, Booster


def bowls():
    """f = ‖w − (2, 2)‖² and h = ‖w‖² at w = (3, 4)."""
    return Bowls((3.0, 4.0)), {"align": [bowl((2.0, 2.0), 2.0)], "harmful": [bowl((0.0, 0.0), 2.0)]}


@pytest.mark.parametrize("lam", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 2.0])
def test_update_is_the_paper_s(lam, alpha):
    """At w = (3, 4): ∇f = (2, 4), ∇h = 2w, ĝ = (.6, .8), so ∇h(w) − ∇h(w − α ĝ) = α (1.2, 1.6)."""
    model, batches = bowls()
    Booster(lam=lam, alpha=alpha).backward(model, batches)
    assert_close(model.w.grad, torch.tensor([2.0, 4.0]) + lam * alpha * torch.tensor([1.2, 1.6]), rtol=1e-5, atol=1e-5)


def test_measures():
    """h = 25 falls to ‖(1 − α/5) w‖² = 24.01 at α = .1; ‖∇h‖ = 10."""
    model, batches = bowls()
    measured = Booster(lam=5, alpha=0.1).backward(model, batches)
    assert measured["align_loss"] == pytest.approx(5.0)
    assert measured["harmful_loss"] == pytest.approx(25.0)
    assert measured["harmful_drop"] == pytest.approx(25 - 24.01, rel=1e-4)
    assert measured["harmful_grad_norm"] == pytest.approx(10.0)


def test_no_harmful_gradient_is_no_step_and_no_nan():
    model = Bowls((0.0, 0.0))
    Booster().backward(model, {"align": [bowl((1.0, 0.0), 1.0)], "harmful": [bowl((0.0, 0.0), 1.0)]})
    assert_close(model.w.grad, torch.tensor([-1.0, 0.0]))


def test_lambda_zero_is_sft_on_a_language_model(tiny, batches):
    SFT().backward(tiny, {"align": batches["align"]})
    sft = [weight.grad for weight in tiny.parameters()]
    tiny.zero_grad()
    Booster(lam=0.0).backward(tiny, batches)
    for weight, expected in zip(tiny.parameters(), sft, strict=True):
        assert_close(weight.grad, expected)


def test_small_alpha_is_a_hessian_vector_product(tiny, batches):
    """[∇h(w) − ∇h(w − α ĝ)] / α → H ĝ, here taken by double backward in float64."""
    model = tiny.double()
    model.set_attn_implementation("eager")
    weights = list(model.parameters())
    loss = model(**batches["harmful"][0]).loss
    grads = torch.autograd.grad(loss, weights, create_graph=True)
    length = torch.sqrt(sum((g.detach() ** 2).sum() for g in grads))
    product = torch.autograd.grad(grads, weights, [g.detach() / length for g in grads])
    SFT().backward(model, {"align": batches["align"]})
    plain = [weight.grad for weight in weights]
    model.zero_grad()
    alpha = 1e-4
    Booster(lam=1.0, alpha=alpha).backward(model, batches)
    found = torch.cat([((w.grad - g) / alpha).flatten() for w, g in zip(weights, plain, strict=True)])
    expected = torch.cat([p.flatten() for p in product])
    assert (found - expected).norm() / expected.norm() < 1e-3


@pytest.mark.parametrize("wrong", [{"lam": -1}, {"alpha": 0}, {"alpha": -0.1}, {"alfa": 0.1}, {"lam": float("nan")}])
def test_wrong_hyperparameters_are_refused(wrong):
    with pytest.raises(ValidationError):
        Booster(**wrong)
