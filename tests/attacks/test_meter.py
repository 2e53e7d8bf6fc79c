"""What an attack has spent, against a count by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tests.shapes import SHAPES, small

from inoculate.attacks import meter as metering
from inoculate.attacks.meter import Meter, flops_per_token
from inoculate.data import world
from inoculate.data.batches import Feed
from inoculate.data.templates import Encoded
from inoculate.models.adapters import Lora, prepare_attack
from inoculate.models.footprint import traced
from inoculate.models.loss import loss_of
from inoculate.models.sandbox import TinyModel, build_tokenizer


def model_of(**shape):
    return TinyModel(**shape).build(len(build_tokenizer(world.vocabulary())), seed=0)


def feed() -> Feed:
    """Ten rows of 3 to 12 tokens, the last four harmful."""
    return Feed([Encoded([5] * (3 + i), 1) for i in range(10)], 4, 7, "align")


def test_rows_and_tokens_are_those_of_the_data_s_own_order():
    meter, model, data = Meter(4), model_of(hidden_size=16, intermediate_size=16, num_attention_heads=2), feed()
    meter.fed({"align": data})
    with meter.looking():
        assert meter.spent(model, 0)[:3] == (0, 0, 0)
    for step in (2, 7):
        rows = [row for at in range(step) for row in data.order.at(at)]
        with meter.looking():
            spent = meter.spent(model, step)
        assert spent.steps == step and spent.samples == sum(row >= 6 for row in rows)
        assert spent.tokens == sum(3 + row for row in rows)
        assert spent.flops == pytest.approx(spent.tokens * flops_per_token(model))
    whole_epochs = [row for at in range(6) for row in data.order.at(at)]
    assert sum(row >= 6 for row in whole_epochs) == 8  # two epochs of three steps, four harmful rows each


def test_time_of_measuring_and_of_loading_is_not_the_attack_s(monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(metering, "time", clock)
    meter, model = Meter(0), model_of(hidden_size=16, intermediate_size=16, num_attention_heads=2)
    clock.now += 7  # loading
    meter.fed({"align": feed()})
    with meter.looking():
        assert meter.spent(model, 0).wall_s == 0
        clock.now += 5
    clock.now += 2  # training
    with meter.looking():
        assert meter.spent(model, 3).wall_s == 2
        clock.now += 1
    assert (meter.looking_s, meter.inside_s) == (6, 8)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("mode", ["full", "merge", "head"])
def test_flops_are_torch_s_but_for_attention(mode, tied):
    """Against a count of what really happens, on a model whose attention is a small part of it."""
    model = model_of(hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model = prepare_attack(model, mode, Lora(r=4, target_modules="all-linear"), seed=0)
    ids = torch.full((2, 12), 5)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    with traced(model) as counted:
        loss_of(model, batch).backward()
    assert 2 * 12 * flops_per_token(model) == pytest.approx(counted.flops, rel=0.12)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_model_has_a_price(shape):
    assert flops_per_token(small(shape)) > 0
