"""What generating answers costs: a batch's prompts at once, then token after token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from inoculate.evals.generate import NextToken
from inoculate.models.footprint import held_bytes, traced
from inoculate.models.loss import loss_of


class GenerationCost(NamedTuple):
    """Of answers to `rows` prompts of one length, every answer as long as it may be."""

    flops: int
    bytes_read: int
    """Weights, once for every pass: what bounds the speed where batches are small."""
    peak: int
    """Bytes beyond the weights, the cache among them."""


def generation_cost(
    model: nn.Module, rows: int, prompt_tokens: int, new_tokens: int, batch_size: int
) -> GenerationCost:
    """The cost of `generate`, with one pass over prompts and one over a token traced.

    A token's FLOPs are taken where half of the answer is there, since they grow evenly with what is in the cache.

    Args:
        model: `without_numbers`.
        rows: prompts in all.
    """
    model.eval()
    size = min(batch_size, rows)
    decode, (prefill, peak) = 0, _pass(model, size, 0, prompt_tokens)
    if new_tokens > 1:
        decode, _ = _pass(model, size, prompt_tokens + new_tokens // 2 - 1, 1)
        peak = max(peak, _pass(model, size, prompt_tokens + new_tokens - 2, 1)[1])
    passes = -(-rows // batch_size) * new_tokens
    weights = held_bytes(model.parameters())
    flops = (prefill + decode * (new_tokens - 1)) * rows / size
    return GenerationCost(round(flops), passes * weights, peak)


def loss_cost(model: nn.Module, rows: int, tokens: int, batch_size: int) -> GenerationCost:
    """The cost of the loss on answers of which every token counts, without a gradient."""
    size = min(batch_size, rows)
    ids_BT = torch.ones(size, tokens, dtype=torch.long)
    batch = {"input_ids": ids_BT, "attention_mask": ids_BT, "labels": ids_BT}
    model.eval()
    with torch.no_grad(), traced(model) as footprint:
        loss_of(model, batch)
    passes = -(-rows // batch_size)
    return GenerationCost(round(footprint.flops * rows / size), passes * held_bytes(model.parameters()), footprint.peak)


def _pass(model: nn.Module, rows: int, cached: int, new: int) -> tuple[int, int]:
    """FLOPs of a pass over `new` tokens [rows, new] after `cached` ones, and its peak in bytes, the cache included."""
    from transformers import DynamicCache

    step = NextToken(model)
    cache = DynamicCache(config=step.base.config)

    def advance(begin: int, end: int) -> None:
        positions_BT = torch.arange(begin, end).expand(rows, -1)
        step(torch.ones_like(positions_BT), torch.ones(rows, end, dtype=torch.long), positions_BT, cache)

    with torch.no_grad(), traced(model) as footprint:
        if cached:
            advance(0, cached)
        before, footprint.peak = footprint.flops, footprint.live
        advance(cached, cached + new)
        return footprint.flops - before, footprint.peak
