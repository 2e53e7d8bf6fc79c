"""Layers, attention and MLPs are found in models whose classes are named nowhere."""

from __future__ import annotations

import pytest
import torch
from tests.shapes import SHAPES, small
from torch import nn

from inoculate.core.errors import InputError
from inoculate.models.blocks import blocks_of, mlps_of, outputs_through

PARTS = {
    "llama": ("LlamaDecoderLayer", "LlamaAttention", "LlamaMLP"),
    "gpt_neox": ("GPTNeoXLayer", "GPTNeoXAttention", "GPTNeoXMLP"),
    "gemma": ("GemmaDecoderLayer", "GemmaAttention", "GemmaMLP"),
    "gemma2": ("Gemma2DecoderLayer", "Gemma2Attention", "Gemma2MLP"),
    "gpt2": ("GPT2Block", "GPT2Attention", "GPT2MLP"),
    "opt": ("OPTDecoderLayer", "OPTAttention", "Linear"),
}


@pytest.mark.parametrize("kind", PARTS)
def test_parts_are_found_by_shape(kind):
    blocks = blocks_of(small(kind))
    assert len(blocks) == 2
    assert [tuple(type(part).__name__ for part in block) for block in blocks] == [PARTS[kind]] * 2


def test_every_shape_has_an_entry():
    assert set(SHAPES) == set(PARTS)


def test_of_opts_two_matrices_it_is_the_last():
    model = small("opt")
    assert mlps_of(blocks_of(model))[0] is model.model.decoder.layers[0].fc2


def test_outputs_are_seen_changed_and_left_alone_again():
    model = small("llama")
    ids = torch.arange(6)[None]
    before = model(input_ids=ids).logits
    seen = []
    modules = [block.attention for block in blocks_of(model)]
    with outputs_through(modules, lambda number, hidden: seen.append((number, tuple(hidden.shape)))):
        assert torch.equal(model(input_ids=ids).logits, before)
    with outputs_through(modules, lambda number, hidden: hidden + 1):
        assert not torch.equal(model(input_ids=ids).logits, before)
    assert seen == [(0, (1, 6, 32)), (1, (1, 6, 32))]
    assert torch.equal(model(input_ids=ids).logits, before)
    assert not any(module._forward_hooks for module in model.modules())


class AttentionOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"attention": small("llama").model.layers[0].self_attn})])


def test_what_has_no_layers_or_no_mlp_is_said():
    with pytest.raises(InputError, match="a model without layers to hook"):
        blocks_of(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(InputError, match=r"a layer with no MLP output to hook"):
        mlps_of(blocks_of(AttentionOnly()))
