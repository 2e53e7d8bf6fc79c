"""Defenses in one alignment: gradients add up, and the alignment's loss counts once."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from torch.testing import assert_close

from inoculate.defenses import SFT, Booster, RepNoise, Together, Vaccine


def gradient(defense, model, batches):
    model.zero_grad()
    measured = defense.backward(model, batches)
    return [weight.grad.clone() for weight in model.parameters()], measured


@pytest.mark.parametrize("first", [SFT(), Vaccine(), RepNoise()], ids=lambda defense: defense.name)
def test_gradients_add_up(first, tiny, batches):
    booster, plain = Booster(lam=3, alpha=0.05), SFT()
    both, measured = gradient(Together(of=(first, booster)), tiny, batches)
    parts = [gradient(defense, tiny, batches)[0] for defense in (first, booster, plain)]
    for ours, one, other, common in zip(both, *parts, strict=True):
        assert_close(ours, one + other - common, rtol=1e-4, atol=1e-6)
    assert {f"{first.name}_align_loss", "booster_harmful_drop"} <= set(measured)
    assert "booster_align_loss" not in measured


def test_three(tiny, batches):
    three, _ = gradient(Together(of=(Vaccine(), Booster(), RepNoise())), tiny, batches)
    parts = [gradient(defense, tiny, batches)[0] for defense in (Vaccine(), Booster(), RepNoise(), SFT())]
    for ours, a, b, c, common in zip(three, *parts, strict=True):
        assert_close(ours, a + b + c - 2 * common, rtol=1e-4, atol=1e-5)


def test_what_it_is_called_and_needs():
    defense = Together(of=(Vaccine(rho=5), RepNoise(alpha=0.1)))
    assert defense.title == "vaccine+repnoise" and set(defense.needs) == {"align", "harmful", "safe"}
    assert defense.params() == {"vaccine_rho": 5.0, "repnoise_alpha": 0.1, "repnoise_beta": 0.001}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((Vaccine(),), "expected two or more defenses, each once, found vaccine"),
        ((Booster(), Booster(lam=1)), "each once, found booster, booster"),
        ((Booster(), Vaccine()), "vaccine is an alignment by itself: it must stand first"),
    ],
)
def test_what_does_not_add_up_is_refused(members, message):
    with pytest.raises(ValidationError, match=message):
        Together(of=members)
