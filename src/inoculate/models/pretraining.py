"""How the sandbox pretrains a body: on binary tasks for vectors, by word vectors for texts.

Masked language modeling on top of word vectors was measured and left out: in 1,200 steps it took the biographies'
restricted attribute (2,000 rows, linear) from .91 to .67, and random features have .60.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils.generic import ModelOutput

from inoculate.core.errors import InputError
from inoculate.models.classifier import EncoderBody


class ManyTasks(nn.Module):
    """A body under a head of binary tasks."""

    def __init__(self, body: nn.Module, tasks: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(body.feature_size, tasks)  # type: ignore[arg-type]

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        """Mean loss over rows and tasks; labels [B, M] are 0 or 1."""
        return ModelOutput(loss=F.binary_cross_entropy_with_logits(self.head(self.body(x=x)), labels))


@torch.no_grad()
def set_word_vectors(body: EncoderBody, input_ids: Tensor, attention_mask: Tensor) -> None:
    """Make the embeddings word vectors: of the words' positive pointwise mutual information within a text, the leading
    singular vectors (Levy & Goldberg, NeurIPS 2014), of length 1 in the mean.

    At BERT's initial scale, 0.02, a few hundred steps of Adam would wipe them out whatever they are trained for.

    Raises:
        InputError: the body is wider than its vocabulary is large.
    """
    weight_VD = body.encoder.get_input_embeddings().weight
    V, D = weight_VD.shape
    if D > V:
        raise InputError("more than the world has words", field="body.hidden_size", found=D, expected=f"at most {V}")
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
    weight_VD[known] = vectors_VD[known] / vectors_VD[known].norm(dim=1).mean()
