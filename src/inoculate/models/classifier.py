"""Classifiers: a body that maps inputs to features [B, D], and a bias-free linear head on them for each task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils.generic import ModelOutput


@dataclass
class Classified(ModelOutput):
    """Mean loss over rows (None without labels), and the logits of the desired task [B, C]."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class Classifier(nn.Module):
    """A body under a head for the desired task and, where the world has them, one for tasks to be retained.

    The published model is the same, its head bias-free: Henderson et al., arXiv:2211.14946.

    Args:
        body: maps its keyword inputs to features [B, D]; `body.feature_size` is D.
        classes: of the desired task; 0 for none.
        restricted_classes: of the task that a defense is to block; an adversary's head needs them.
        retained: binary tasks to be kept.
    """

    def __init__(self, body: nn.Module, classes: int, restricted_classes: int = 2, retained: int = 0) -> None:
        super().__init__()
        self.body, self.restricted_classes = body, restricted_classes
        size: int = body.feature_size  # type: ignore[assignment]
        self.head = nn.Linear(size, classes, bias=False) if classes else None
        self.retained_head = nn.Linear(size, retained, bias=True) if retained else None

    @property
    def feature_size(self) -> int:
        """D."""
        return self.body.feature_size  # type: ignore[return-value]

    def forward(
        self,
        labels: Tensor | None = None,
        retained: Tensor | None = None,
        head: Tensor | None = None,
        **inputs: Tensor,
    ) -> Any:
        """Loss and logits of the desired task, and the loss of the retained ones added to it.

        Args:
            labels: class numbers [B].
            retained: binary targets [B, R].
            head: another head [C, D] to put on the body: then its logits [B, C] alone are returned.
        """
        features_BD = self.body(**inputs)
        if head is not None:
            return features_BD @ head.T
        logits, losses = None, []
        if self.head is not None:
            logits = self.head(features_BD)
            if labels is not None:
                losses.append(F.cross_entropy(logits, labels))
        if self.retained_head is not None and retained is not None:
            losses.append(F.binary_cross_entropy_with_logits(self.retained_head(features_BD), retained))
        return Classified(loss=torch.stack(losses).sum() if losses else None, logits=logits)


class MlpBody(nn.Module):
    """Vectors [B, D_in] to features: `num_layers` of ReLU, or two residual blocks under a tanh pooler.

    The residual form has the bounded features of a BERT pooler; the plain form's grow, and with them the loss under a
    head that does not know them.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, feature_size: int | None) -> None:
        super().__init__()
        self.residual, self.feature_size = feature_size is not None, feature_size or hidden_size
        self.first = nn.Linear(input_size, hidden_size)
        self.layers = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(num_layers - 1))
        self.pooler = nn.Linear(hidden_size, feature_size) if feature_size is not None else None

    def shape(self) -> dict[str, int | None]:
        """The arguments that build another of the same shape."""
        return {
            "input_size": self.first.in_features,
            "hidden_size": self.first.out_features,
            "num_layers": len(self.layers) + 1,
            "feature_size": self.feature_size if self.residual else None,
        }

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, D]."""
        hidden = self.first(x).relu()
        for layer in self.layers:
            update = layer(hidden).relu()
            hidden = hidden + update if self.residual else update
        return hidden if self.pooler is None else self.pooler(hidden).tanh()


class EncoderBody(nn.Module):
    """A transformers encoder, its last hidden states pooled to features [B, D].

    Attention is told to be `eager` by whoever loads the encoder: fused kernels have no second derivative.

    Args:
        pooling: `mean` over the tokens that are not padding, or `cls`, the first token's.
    """

    def __init__(self, encoder: Any, pooling: str = "mean") -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        self.feature_size = encoder.config.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Features [B, D] of token ids [B, T]. The mask is given to the encoder in its additive form [B, 1, T, T],
        which it takes as it is, under `torch.func`'s transforms too.
        """
        B, T = input_ids.shape
        dtype = self.encoder.dtype
        away = (1 - attention_mask.to(dtype))[:, None, None, :].expand(B, 1, T, T) * torch.finfo(dtype).min
        hidden_BTD = self.encoder(input_ids=input_ids, attention_mask=away).last_hidden_state
        if self.pooling == "cls":
            return hidden_BTD[:, 0]
        weight_BT1 = attention_mask[..., None].to(hidden_BTD.dtype)
        return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)


def inputs_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch without its labels and weight: what a body is given."""
    return {name: tensor for name, tensor in batch.items() if name not in ("labels", "retained", "loss_weight")}
