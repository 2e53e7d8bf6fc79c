"""Vaccine against its formula written out, on three architectures."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from tests.conftest import Bowls, bowl
from tests.shapes import small
from torch.testing import assert_close

from inoculate.core.errors import InputError
from inoculate.data.batches import pad
from inoculate.defenses import SFT, Vaccine
from inoculate.models import blocks

ATTENTION = {"llama": "self_attn", "gpt_neox": "attention", "gemma": "self_attn"}
shapes = pytest.mark.parametrize("kind", ATTENTION)


@pytest.fixture
def align(rows):
    return pad(rows["align"][:4], 0)


def grads(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def literal(model, batch, rho, attention):
    """Both passes with hooks of its own, on modules by name; loss over all positions."""
    modules = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] == attention]
    outputs = []

    def loss():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        shifted, labels = logits[:, :-1].reshape(-1, logits.shape[-1]), batch["labels"][:, 1:].reshape(-1)
        return torch.nn.functional.cross_entropy(shifted, labels, ignore_index=-100)

    handles = [module.register_forward_hook(lambda _, __, out: outputs.append(out[0])) for module in modules]
    slopes = torch.autograd.grad(loss(), outputs)
    for handle in handles:
        handle.remove()
    length = torch.cat([slope.flatten() for slope in slopes]).norm()
    for module, slope in zip(modules, slopes, strict=True):
        push = rho * slope / length
        module.register_forward_hook(lambda _, __, out, push=push: (out[0] + push, *out[1:]))
    model.zero_grad()
    loss().backward()
    return grads(model)


@shapes
def test_the_update_is_the_formulas(kind, align, tokenizer):
    ours = small(kind, len(tokenizer)).double()
    Vaccine(rho=0.7).backward(ours, {"align": [align]})
    expected = literal(small(kind, len(tokenizer)).double(), align, 0.7, ATTENTION[kind])
    found = grads(ours)
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        assert_close(grad, expected[name], rtol=1e-6, atol=1e-6, msg=name)  # guarded by 1e-7 beside the norm


@shapes
@pytest.mark.parametrize("rho", [2.0, 5.0])
def test_the_perturbation_has_the_joint_norm(kind, rho, align, tokenizer, monkeypatch):
    model = small(kind, len(tokenizer)).double()
    calls = []

    def watched(modules, change):
        calls.append((len(modules), change))
        return through(modules, change)

    through = blocks.outputs_through
    monkeypatch.setattr(blocks, "outputs_through", watched)
    found = Vaccine(rho=rho).backward(model, {"align": [align]})
    layers, push = calls[-1]
    zero = torch.zeros(*align["input_ids"].shape, 32, dtype=torch.float64)
    squares = [float((push(layer, zero) ** 2).sum()) for layer in range(layers)]
    assert layers == 2 and min(squares) > 0
    assert sum(squares) ** 0.5 == pytest.approx(rho, rel=1e-6)
    assert found["perturbed_loss"] > found["align_loss"]


def test_no_perturbation_is_sft(tiny, align):
    Vaccine(rho=0).backward(tiny, {"align": [align]})
    ours = grads(tiny)
    tiny.zero_grad()
    SFT().backward(tiny, {"align": [align]})
    for name, grad in grads(tiny).items():
        assert_close(ours[name], grad)


def test_padding_changes_nothing(tiny, align):
    """Neither the loss nor the joint norm sees it."""
    found = Vaccine().backward(tiny, {"align": [align]})
    short = grads(tiny)
    tiny.zero_grad()
    rows, longer = align["input_ids"].shape[0], 7
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    wide = {name: torch.cat([x, torch.full((rows, longer), fill[name])], 1) for name, x in align.items()}
    assert Vaccine().backward(tiny, {"align": [wide]}) == pytest.approx(found, rel=1e-5)
    for name, grad in grads(tiny).items():
        assert_close(grad, short[name], rtol=1e-4, atol=1e-6)


def test_presets():
    assert Vaccine() == Vaccine(preset="paper") and Vaccine().rho == 2
    assert Vaccine(preset="booster-authors").rho == 5 and Vaccine(preset="booster-authors", rho=1).rho == 1
    with pytest.raises(ValidationError, match="preset: found 'authors', expected one of paper, booster-authors"):
        Vaccine(preset="authors")
    with pytest.raises(ValidationError):
        Vaccine(rho=-1)


def test_a_model_without_attention_is_refused():
    with pytest.raises(InputError, match="without layers to hook"):
        Vaccine().backward(Bowls((0.0, 0.0)), {"align": [bowl((1.0, 0.0), 1.0)]})
