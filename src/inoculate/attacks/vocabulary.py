"""Word vectors that a fine-tuning cannot reach, taken out of what is trained.

The vector of a token that stands in none of the attacker's samples has no gradient, so Adam and SGD leave it as it is:
it need not be stacked, nor given an optimizer's state. From 200 texts an attacker reaches some 1,500 of BERT's 30,522.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Reachable(nn.Module):
    """An embedding table of V vectors, of which those of `tokens` [U] alone are weights.

    Its padding vector, which torch does not train, is none of them.
    """

    def __init__(self, table: nn.Embedding, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens[tokens != table.padding_idx] if table.padding_idx is not None else tokens
        self.weight = nn.Parameter(table.weight.detach()[self.tokens])
        self.still = table.weight.detach()
        self.place = torch.full((len(self.still),), -1)
        self.place[self.tokens] = torch.arange(len(self.tokens))

    def forward(self, ids: Tensor) -> Tensor:
        """[..., D] of token ids [...]."""
        return self.mixed(ids, F.embedding(self.place[ids].clamp_min(0), self.weight))

    def mixed(self, ids: Tensor, moving: Tensor) -> Tensor:
        """`moving` [..., D] where the token is one of `tokens`, else the vector that stays."""
        return torch.where((self.place[ids] >= 0)[..., None], moving, F.embedding(ids, self.still))

    def whole(self, weight_UD: Tensor) -> Tensor:
        """The table [V, D] with these vectors for those of `tokens`."""
        table_VD = self.still.clone()
        table_VD[self.tokens] = weight_UD
        return table_VD


def reachable(body: nn.Module, input_ids: Tensor) -> nn.Module:
    """A copy of an encoder's body in which the vectors of these tokens alone are weights; other bodies as they are."""
    if not hasattr(body, "encoder"):
        return body
    body = copy.deepcopy(body)
    encoder: Any = body.encoder
    encoder.set_input_embeddings(Reachable(encoder.get_input_embeddings(), input_ids.unique()))
    return body


def whole(body: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a body made by `reachable`, by name, as its original would have them."""
    tables = {f"{name}.weight": module for name, module in body.named_modules() if isinstance(module, Reachable)}
    return {name: tables[name].whole(weight) if name in tables else weight for name, weight in weights.items()}
