"""The sandbox's models: three architectures under one tokenizer, one loss and every layout."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from inoculate.data.batches import collate
from inoculate.models.loss import loss_of
from inoculate.models.packing import packed_attention
from inoculate.models.sandbox import TinyModel
from inoculate.training.config import Training
from inoculate.training.layout import layout_for

KINDS = {"llama": "LlamaForCausalLM", "gpt_neox": "GPTNeoXForCausalLM", "gemma": "GemmaForCausalLM"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_makes_the_weights(kind, tokenizer):
    shape = TinyModel(model_type=kind, hidden_size=32, num_attention_heads=2)
    one, same, other = (shape.build(len(tokenizer), seed) for seed in (1, 1, 2))
    assert type(one).__name__ == KINDS[kind]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.get_input_embeddings().weight, other.get_input_embeddings().weight)
    assert one.get_output_embeddings().weight is one.get_input_embeddings().weight


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_in_its_layout(kind, tokenizer, rows):
    model = TinyModel(model_type=kind, hidden_size=32, num_attention_heads=2).build(len(tokenizer), seed=0)
    layout = layout_for(model, Training(), max_length=256)
    padded, fast = (collate(rows["align"][:8], kind, 0) for kind in ("padded", layout))
    before = loss_of(model, padded)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with packed_attention(model):
        torch.testing.assert_close(before, loss_of(model, fast), rtol=1e-5, atol=1e-5)
        for _ in range(20):
            optimizer.zero_grad()
            loss_of(model, fast).backward()
            optimizer.step()
        assert loss_of(model, fast).item() < 0.6 * before.item()


def test_an_architecture_that_is_not_there():
    with pytest.raises(ValidationError, match="'llama', 'gpt_neox' or 'gemma'"):
        TinyModel(model_type="mamba")
