"""Language models of several architectures, two layers of 32 each, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

_COMMON = {
    "vocab_size": 482,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 64, "num_key_value_heads": 2},
    "gpt_neox": {"intermediate_size": 64},
    "gemma": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 16},
    "gemma2": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 16},
    "gpt2": {"n_inner": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
}


def small(kind: str, vocab_size: int = 482) -> Any:
    """A model of this `model_type`, in eval mode; the same weights every time."""
    torch.manual_seed(0)
    fields = {**_COMMON, **SHAPES[kind], "vocab_size": vocab_size}
    config = AutoConfig.for_model(kind, **fields)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
