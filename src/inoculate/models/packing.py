"""Attention over packed sequences, for devices without a variable-length kernel.

`varlen` batches carry the boundaries of their sequences as `cu_seq_lens_q`, the name under which transformers hands
them to flash attention. Where that is not installed (CPU), the function here attends sequence by sequence, each
causal and unmasked, which spends nothing on padding or on pairs of tokens that must not see each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NAME = "inoculate_varlen"


def attend_packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each packed sequence.

    Args:
        query: [1, heads, T, D]. key, value: [1, kv heads, T, D].
        kwargs: `cu_seq_lens_q`, the int32 boundaries 0 … T of the sequences; without it, plain attention.

    Returns:
        [1, T, heads, D], None.
    """
    bounds = kwargs.get("cu_seq_lens_q")
    if bounds is None:
        if attention_mask is not None and not attention_mask.numel():
            raise ValueError("the positions are those of packed sequences, but cu_seq_lens_q is missing")
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    lengths = bounds.diff().tolist()
    parts = [
        F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def mask_unless_packed(*args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' mask, but an empty one for packed sequences: [T, T] would be built in vain, and grows fast.

    transformers knows packed sequences by their positions, and asks then for a mask that is more than causal although
    there is no padding.
    """
    from transformers.masking_utils import sdpa_mask

    if kwargs["attention_mask"] is None and not kwargs["allow_is_causal_skip"] and not kwargs["use_vmap"]:
        return torch.empty(kwargs["batch_size"], 1, 0, 0, dtype=torch.bool, device=kwargs["device"])
    return sdpa_mask(*args, **kwargs)


def can_pack(model: nn.Module, max_length: int) -> bool:
    """Whether the model's attention can be packed: plain causal attention, and no window shorter than a sequence."""
    config = getattr(model, "config", None)
    if config is None or getattr(config, "_attn_implementation", None) not in ("sdpa", NAME, "flash_attention_2"):
        return False
    windows = (getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None))
    if getattr(config, "is_encoder_decoder", False) or not getattr(config, "is_causal", True):
        return False
    return all(window is None or window >= max_length for window in windows)


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Inside the context, `varlen` batches are attended sequence by sequence."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    before = model.config._attn_implementation
    if before == "flash_attention_2":
        yield
        return
    AttentionInterface.register(NAME, attend_packed)
    AttentionMaskInterface.register(NAME, mask_unless_packed)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
