"""How the sandbox pretrains a body: binary tasks for vectors; word vectors, then masked words, for texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils.generic import ModelOutput

from inoculate.models.classifier import EncoderBody

_MASKED = 0.15
"""Share of the words that a masked language model has to guess (Devlin et al., arXiv:1810.04805)."""


class ManyTasks(nn.Module):
    """A body under a head of binary tasks."""

    def __init__(self, body: nn.Module, tasks: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(body.feature_size, tasks)  # type: ignore[arg-type]

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        """Mean loss over rows and tasks; labels [B, M] are 0 or 1."""
        return ModelOutput(loss=F.binary_cross_entropy_with_logits(self.head(self.body(x=x)), labels))


class MaskedWords(nn.Module):
    """An encoder that guesses masked words, its output layer tied to its embeddings."""

    def __init__(self, body: EncoderBody, mask_id: int) -> None:
        super().__init__()
        self.body, self.mask_id = body, mask_id

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Mean loss over masked words; which are masked is drawn from the RNG."""
        masked_BT = (torch.rand(input_ids.shape, device=input_ids.device) < _MASKED) & attention_mask.bool()
        seen = input_ids.masked_fill(masked_BT, self.mask_id)
        hidden_BTD = self.body.hidden(seen, attention_mask)
        logits_NV = hidden_BTD[masked_BT] @ self.body.encoder.get_input_embeddings().weight.T
        return ModelOutput(loss=F.cross_entropy(logits_NV, input_ids[masked_BT]))


@torch.no_grad()
def set_word_vectors(body: EncoderBody, input_ids: Tensor, attention_mask: Tensor) -> None:
    """Make the embeddings word vectors: of the words' positive pointwise mutual information within a text, the leading
    singular vectors (Levy & Goldberg, NeurIPS 2014), at the scale of the embeddings' initialization.
    """
    weight_VD = body.encoder.get_input_embeddings().weight
    V, D = weight_VD.shape
    rows = torch.arange(len(input_ids)).repeat_interleave(input_ids.shape[1])
    seen = attention_mask.flatten().bool()
    present_NV = torch.zeros(len(input_ids), V)
    present_NV[rows[seen], input_ids.flatten()[seen]] = 1.0
    pairs_VV = present_NV.T @ present_NV
    pairs_VV.fill_diagonal_(0)
    count_V = pairs_VV.sum(1).clamp_min(1)
    information_VV = (pairs_VV * pairs_VV.sum() / (count_V[:, None] * count_V)).clamp_min(1).log()
    U, S, _ = torch.linalg.svd(information_VV)
    vectors_VD = U[:, :D] * S[:D].sqrt()
    known = present_NV.sum(0) > 0
    scale = weight_VD.std() / vectors_VD[known].std()
    weight_VD[known] = vectors_VD[known] * scale
