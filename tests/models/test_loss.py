"""One loss, whatever the layout: padded, unmasked, packed; and never over padding or prompts."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from inoculate.data.batches import collate, pad
from inoculate.models.adapters import Lora, add_lora
from inoculate.models.loss import loss_of
from inoculate.models.packing import can_pack, packed_attention
from inoculate.models.weights import loss_and_grad


@pytest.fixture
def ragged(rows):
    picked = [*rows["align"][:3], *rows["harmful"][:3]]
    assert len({len(row.ids) for row in picked}) > 1
    return picked


def test_is_transformers_own_loss(tiny, ragged):
    batch = pad(ragged, 0)
    assert_close(loss_of(tiny, batch), tiny(**batch).loss)


@pytest.mark.parametrize("layout", ["causal", "varlen"])
def test_layouts_agree(tiny, ragged, layout):
    loss, grads = loss_and_grad(tiny, collate(ragged, "padded", 0))
    with packed_attention(tiny):
        other_loss, other_grads = loss_and_grad(tiny, collate(ragged, layout, 0))
    assert other_loss == pytest.approx(loss, rel=1e-6)
    for mine, theirs in zip(other_grads, grads, strict=True):
        assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_packed_sequences_do_not_see_each_other(tiny, ragged):
    """Changing one sequence's prompt changes no logit of another."""
    batch = collate(ragged, "varlen", 0)
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, 1] += 1
    edge = len(ragged[0].ids)
    with packed_attention(tiny), torch.no_grad():
        before, after = (
            tiny(**{k: v for k, v in b.items() if k != "labels"}, use_cache=False).logits for b in (batch, changed)
        )
    assert torch.equal(before[0, edge:], after[0, edge:])
    assert not torch.equal(before[0, :edge], after[0, :edge])


def test_more_padding_changes_nothing(tiny, ragged):
    batch = pad(ragged, 0)
    wide = {
        name: torch.nn.functional.pad(tensor, (0, 9), value=-100 if name == "labels" else 0)
        for name, tensor in batch.items()
    }
    assert_close(loss_of(tiny, wide), loss_of(tiny, batch))


def test_grouped_query_attention_and_lora_pack_too(tokenizer, ragged):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    model = add_lora(LlamaForCausalLM(config), Lora(r=2), seed=0)
    loss = loss_of(model, pad(ragged, 0))
    with packed_attention(model):
        assert_close(loss_of(model, collate(ragged, "varlen", 0)), loss)


def test_attention_is_put_back(tiny):
    before = tiny.config._attn_implementation
    with pytest.raises(RuntimeError), packed_attention(tiny):
        assert tiny.config._attn_implementation != before
        raise RuntimeError
    assert tiny.config._attn_implementation == before


def test_windows_shorter_than_a_sequence_are_not_packed(tiny):
    assert can_pack(tiny, 64)
    tiny.config.sliding_window = 32
    assert not can_pack(tiny, 64)
    assert can_pack(tiny, 32)


def test_classifiers_bring_their_own_loss():
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(
        BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).eval()
    batch = {"input_ids": torch.arange(8).view(2, 4), "labels": torch.tensor([0, 1])}
    assert_close(loss_of(model, batch), model(**batch).loss)
