"""The word vectors that a few batches ask for, as a table of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from inoculate.core.types import Batch
from inoculate.models.classifier import Classifier


class Words:
    """Tokens [U] of an embedding table [V, D], and where each of them stands among the U.

    Of MiniLM's 13.5 million weights below its second layer, 11.7 are word vectors, and a dozen batches ask for some
    hundreds of the 30,522. The others have no gradient: simulated fine-tuning leaves them as they are.

    Args:
        table: its padding token keeps its number, at which encoders look for it and torch gives it no gradient.
        tokens: all that will be looked up, [U].
    """

    def __init__(self, table: nn.Embedding, tokens: Tensor) -> None:
        if (padding := table.padding_idx) is not None:
            others = tokens[tokens != padding]
            tokens = torch.cat([others[:padding], tokens.new_tensor([padding]), others[padding:]])
        self.tokens, self.shape = tokens, table.weight.shape
        self.place = tokens.new_full((len(table.weight),), -1)
        self.place[tokens] = torch.arange(len(tokens), device=tokens.device)

    def of(self, table_VD: Tensor) -> Tensor:
        """Their vectors, [U, D]."""
        return table_VD[self.tokens]

    def whole(self, vectors_UD: Tensor) -> Tensor:
        """A table [V, D] of theirs, with zeros for all others."""
        return vectors_UD.new_zeros(self.shape).index_copy_(0, self.tokens, vectors_UD)


def words_of(model: Classifier, batches: Iterable[Batch]) -> tuple[Tensor, Words] | None:
    """The trainable word vectors of a classifier of texts and those that these batches ask for; None without any."""
    encoder: Any = getattr(model.body, "encoder", None)
    table = encoder.get_input_embeddings() if encoder is not None else None
    if not isinstance(table, nn.Embedding) or not table.weight.requires_grad:
        return None
    tokens = torch.cat([batch["input_ids"].flatten() for batch in batches]).unique()
    if table.padding_idx is not None and len(tokens) <= table.padding_idx:
        return None
    return table.weight, Words(table, tokens)
