"""Security vectors by hand: the KL term against one written out, the min-min steps against SGD written out."""

from __future__ import annotations

import pytest
import torch
from tests.conftest import Bowls, bowl
from torch import nn
from torch.testing import assert_close

from inoculate.defenses import SecurityVector
from inoculate.models.adapters import Lora, add_vector
from inoculate.models.loss import loss_of

LORA = Lora(r=4, lora_alpha=8, target_modules=("q_proj", "v_proj"))


@pytest.fixture
def model(tiny):
    model = add_vector(tiny, LORA, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.6, generator=torch.Generator().manual_seed(3))
    return model


def labeled(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    return logits[batch["labels"][:, 1:] != -100]


def grads_of(model, loss):
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.autograd.grad(loss, weights)


@pytest.mark.parametrize("kl_weight", [0.0, 0.5, 3.0])
def test_the_gradient_is_of_the_objective(model, batches, kl_weight):
    """∇h + β ∇KL(without ‖ with), the model without the vector asked through peft."""
    harmful, ordinary = batches["harmful"][0], batches["ordinary"][0]
    with torch.no_grad(), model.disable_adapter():
        log_p = labeled(model, ordinary).log_softmax(1)
    kl = (log_p.exp() * (log_p - labeled(model, ordinary).log_softmax(1))).sum(1).mean()
    expected = grads_of(model, loss_of(model, harmful) + kl_weight * kl)
    measured = SecurityVector(kl_weight=kl_weight).backward(model, batches)
    found = [weight.grad for weight in model.parameters() if weight.requires_grad]
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert ("ordinary_kl" in measured) == bool(kl_weight)
    if kl_weight:
        assert measured["ordinary_kl"] == pytest.approx(kl.item(), rel=1e-4) and kl.item() > 0.01


def test_no_ordinary_data_without_the_kl_term():
    assert SecurityVector().needs == {"harmful": 1, "ordinary": 1}
    assert SecurityVector(kl_weight=0).needs == {"harmful": 1}


class Pair(nn.Module):
    """½ k ‖v + b − c‖² over a trainable v and a frozen backbone b."""

    def __init__(self):
        super().__init__()
        self.v = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.b = nn.Parameter(torch.tensor([3.0, 4.0]), requires_grad=False)

    def forward(self, center, steepness):
        from types import SimpleNamespace

        return SimpleNamespace(loss=0.5 * steepness * ((self.v + self.b - center) ** 2).sum())


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_min_min_moves_a_copy_of_the_backbone(steps):
    """With k = 1, c = 0 and rate 0.1 each step leaves 0.9 of v + b = (4, 6); the gradient for v is what is left."""
    model = Pair()
    batches = {"harmful": [bowl((0.0, 0.0), 1.0)]}
    SecurityVector(kl_weight=0, inner_steps=steps, inner_learning_rate=0.1).backward(model, batches)
    assert_close(model.v.grad, 0.9**steps * torch.tensor([4.0, 6.0]))
    assert torch.equal(model.b, torch.tensor([3.0, 4.0])) and model.b.grad is None
    assert not model.b.requires_grad and model.v.requires_grad


def test_min_min_under_autocast(model, batches):
    found = []
    for cached in (True, False):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            defense = SecurityVector(kl_weight=0, inner_steps=2, inner_learning_rate=0.1)
            found.append(defense.backward(model, batches)["harmful_loss"])
    assert found[0] == found[1]


def test_min_min_needs_a_backbone():
    """A model that is trainable as a whole has none to move."""
    model = Bowls((3.0, 4.0))
    model.frozen.requires_grad_(True)
    SecurityVector(kl_weight=0, inner_steps=3).backward(model, {"harmful": [bowl((0.0, 0.0), 1.0)]})
    assert_close(model.w.grad, torch.tensor([3.0, 4.0]))
