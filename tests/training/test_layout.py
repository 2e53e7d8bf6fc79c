"""Which layout a model gets."""

from __future__ import annotations

import pytest
import torch

from inoculate.data.batches import pack
from inoculate.data.mix import Mix, Part
from inoculate.models.adapters import Lora, add_lora
from inoculate.models.loss import loss_of
from inoculate.models.packing import packed_attention
from inoculate.models.sandbox import TinyModel
from inoculate.training.config import Training
from inoculate.training.layout import feeds_for, layout_for


def llama(hidden_size):
    return TinyModel(hidden_size=hidden_size, num_hidden_layers=1).build(vocab_size=20, seed=0)


@pytest.mark.parametrize(
    ("hidden_size", "max_length", "layout"),
    [(64, 64, "causal"), (64, 128, "causal"), (64, 129, "varlen"), (128, 64, "varlen"), (256, 256, "varlen")],
)
def test_packed_unless_narrow_and_short(hidden_size, max_length, layout):
    assert layout_for(llama(hidden_size), Training(), max_length) == layout


def test_the_adapter_changes_nothing():
    assert layout_for(add_lora(llama(128), Lora(r=2), seed=0), Training(), 256) == "varlen"


def test_rows_of_like_length_are_fed_and_their_loss_is_the_packed_one(tokenizer, tiny):
    """`train_sampling_strategy` reaches the feeds, in the layout that the model allows."""
    mix = Mix(roles={"align": (Part(source="sandbox-ordinary", num_samples=60),)}, max_length=64)
    grouped = Training(train_sampling_strategy="group_by_length", per_device_train_batch_size=4, packing=False)
    feed = feeds_for(mix, tokenizer, tiny, grouped)["align"]
    plain = feeds_for(mix, tokenizer, tiny, Training(per_device_train_batch_size=4))["align"]
    assert feed.layout == "padded" and plain.layout == "causal"

    def spread(rows):
        return max(len(row.ids) for row in rows) - min(len(row.ids) for row in rows)

    assert sum(spread(feed.rows_at(step)) for step in range(15)) < 0.5 * sum(
        spread(plain.rows_at(step)) for step in range(15)
    )
    for step in (0, 3, 14):
        rows = feed.rows_at(step)
        with packed_attention(tiny):
            packed = loss_of(tiny, pack(rows))
        torch.testing.assert_close(loss_of(tiny, feed.batches_at(step)[0]), packed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hidden_size", [64, 256])
def test_packing_can_be_turned_off(hidden_size):
    assert layout_for(llama(hidden_size), Training(packing=False), 64) == "padded"


def test_eager_attention_is_padded():
    model = llama(256)
    model.set_attn_implementation("eager")
    assert layout_for(model, Training(), 256) == "padded"


@pytest.mark.parametrize("name", ["sliding_window", "attention_chunk_size"])
def test_a_window_shorter_than_a_row_is_padded(name):
    model = llama(256)
    setattr(model.config, name, 200)
    assert layout_for(model, Training(), 201) == "padded"
    assert layout_for(model, Training(), 200) == "varlen"


def test_attention_that_looks_right_is_padded():
    model = llama(256)
    model.config.is_causal = False
    assert layout_for(model, Training(), 256) == "padded"
