"""Which batch layout wastes least on which model."""

from __future__ import annotations

from typing import Any

from inoculate.data.batches import Layout
from inoculate.models.packing import can_pack
from inoculate.training.config import Training

_WIDE = 256
"""Hidden size from which per-sequence attention calls cost less than padding (measured: `make bench`)."""


def layout_for(model: Any, training: Training, max_length: int) -> Layout:
    """Packed for wide models, unmasked for narrow ones, padded with a mask where attention is not plainly causal."""
    if not training.packing or not can_pack(model, max_length):
        return "padded"
    return "varlen" if model.config.hidden_size >= _WIDE else "causal"
