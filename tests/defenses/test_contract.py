"""One contract that every defense passes, on a language model."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from inoculate.core.types import Defense
from inoculate.defenses import DEFENSES
from inoculate.models.adapters import Lora, add_lora

LORA = Lora(r=4, lora_alpha=8, target_modules=("q_proj", "v_proj"))
defenses = pytest.mark.parametrize("defense", [kind() for kind in DEFENSES.values()], ids=list(DEFENSES))


def grads(model):
    return [None if weight.grad is None else weight.grad.clone() for weight in model.parameters()]


def needed(defense, batches):
    return {role: batches[role] * count for role, count in defense.needs.items()}


def with_dropout(model):
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    return model


@defenses
def test_conforms(defense):
    assert isinstance(defense, Defense)
    assert DEFENSES[defense.name] is type(defense)


MEASURED = {
    "sft": {"align_loss"},
    "booster": {"align_loss", "harmful_loss", "harmful_drop", "harmful_grad_norm"},
    "vaccine": {"align_loss", "perturbed_loss", "hidden_grad_norm"},
    "security_vector": {"harmful_loss", "ordinary_kl"},
    "lisa": {"align_loss", "drift"},
}


@defenses
def test_what_is_measured_keeps_its_names(defense, tiny, batches):
    """They stand in metrics.jsonl and in trackers."""
    measured = defense.backward(tiny, needed(defense, batches))
    assert all(isinstance(value, float) for value in measured.values())
    assert set(measured) == MEASURED.get(defense.name, set(measured))


@defenses
@pytest.mark.parametrize("training", [True, False])
def test_leaves_everything_as_found(defense, tiny, batches, training):
    with_dropout(tiny).train(training)
    weights = [weight.clone() for weight in tiny.parameters()]
    flags = [weight.requires_grad for weight in tiny.parameters()]
    rng = torch.get_rng_state()
    defense.backward(tiny, needed(defense, batches))
    assert all(torch.equal(a, b) for a, b in zip(weights, tiny.parameters(), strict=True))
    assert [weight.requires_grad for weight in tiny.parameters()] == flags
    assert torch.equal(rng, torch.get_rng_state())
    assert tiny.training is training
    assert all(not m._forward_hooks and not m._forward_pre_hooks and not m._backward_hooks for m in tiny.modules())


@defenses
def test_all_passes_of_a_step_share_one_dropout_mask(defense, tiny, batches):
    """Two calls from one RNG state agree; and with a vanishing step, h(w) − h(w − α ĝ) vanishes too."""
    model = with_dropout(tiny).train()
    if defense.name == "booster":
        measured = type(defense)(alpha=1e-9).backward(model, batches)
        assert abs(measured["harmful_drop"]) < 1e-5  # a rounding; another mask makes a hundred times that and more
        model.zero_grad()
    defense.backward(model, needed(defense, batches))
    first = grads(model)
    model.zero_grad()
    defense.backward(model, needed(defense, batches))
    assert all(torch.equal(a, b) for a, b in zip(first, grads(model), strict=True))


@defenses
def test_an_error_midway_restores_the_weights(defense, tiny, batches):
    """Whichever of its passes it is that fails."""
    weights = [weight.clone() for weight in tiny.parameters()]
    calls, last = 0, 0
    forward = tiny.forward

    def failing(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == last:
            raise RuntimeError("out of memory")
        return forward(*args, **kwargs)

    tiny.forward = failing
    defense.backward(tiny, needed(defense, batches))
    passes = calls
    for last in range(1, passes + 1):  # noqa: B007  read by `failing`
        calls = 0
        with pytest.raises(RuntimeError, match="out of memory"):
            defense.backward(tiny, needed(defense, batches))
    assert all(torch.equal(a, b) for a, b in zip(weights, tiny.parameters(), strict=True))


@defenses
def test_calls_add_up(defense, tiny, batches):
    given = needed(defense, batches)
    defense.backward(tiny, given)
    once = grads(tiny)
    defense.backward(tiny, given)
    for twice, single in zip(grads(tiny), once, strict=True):
        assert_close(twice, 2 * single)


@defenses
def test_frozen_weights_get_no_gradient(defense, tiny, batches):
    model = add_lora(tiny, LORA, seed=0)
    defense.backward(model, needed(defense, batches))
    for name, weight in model.named_parameters():
        assert (weight.grad is not None) == ("lora_" in name), name


@defenses
def test_loss_weight_scales(defense, tiny, batches):
    defense.backward(tiny, needed(defense, batches))
    whole = grads(tiny)
    tiny.zero_grad()
    halved = {role: [{**b, "loss_weight": torch.tensor(0.5)} for b in given] for role, given in batches.items()}
    defense.backward(tiny, needed(defense, halved))
    for half, full in zip(grads(tiny), whole, strict=True):
        assert_close(half, full / 2)


@defenses
def test_autocast_keeps_no_weight_that_was_moved(defense, tiny, batches):
    """Autocast caches its bf16 copies of the weights: a pass on shifted weights must not see the old ones."""
    model = add_lora(tiny, LORA, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    found = []
    for cached in (True, False):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            measured = defense.backward(model, needed(defense, batches))
        found.append((measured, grads(model)))
    assert found[0][0] == found[1][0]
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert a is None or torch.equal(a, b)


@defenses
def test_bf16_base_under_fp32_adapters(defense, tiny, batches):
    model = add_lora(tiny.to(torch.bfloat16), LORA, seed=0)
    defense.backward(model, needed(defense, batches))
    found = [weight.grad for weight in model.parameters() if weight.requires_grad]
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in found)
    assert any(grad.abs().sum() > 0 for grad in found)
