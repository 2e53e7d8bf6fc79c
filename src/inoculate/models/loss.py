"""The loss of a batch: mean cross-entropy over labeled tokens, with logits only where a label stands.

Nine tenths of a causal LM's logits are read by nobody (prompts, padding). Every Hugging Face decoder takes
`logits_to_keep`, positions along the token axis at which the head is applied, so no model's insides are touched.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inoculate.core.types import Batch

IGNORED = -100


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Mean loss of a batch, 0-dim, times the batch's `loss_weight` if it has one.

    Causal LMs: mean over tokens whose label is not −100 (labels are aligned with `input_ids`, as everywhere in
    Hugging Face; the shift is made here). Other models (classifiers): the model's own `.loss`.
    """
    inputs = dict(batch)
    weight = inputs.pop("loss_weight", None)
    loss = _causal_loss(model, inputs) if _keeps_logits(type(_inner(model))) else model(**inputs).loss
    return loss if weight is None else loss * weight


def _causal_loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    labels = inputs.pop("labels")[:, 1:]
    columns = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
    logits = model(**inputs, logits_to_keep=columns, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), labels[:, columns].flatten(), ignore_index=IGNORED)


def _inner(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside data-parallel and adapter wrappers."""
    while True:
        unwrap: Any = getattr(model, "get_base_model", None)
        if unwrap is not None:
            model = unwrap()
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


@cache
def _keeps_logits(kind: type[nn.Module]) -> bool:
    return "logits_to_keep" in inspect.signature(kind.forward).parameters


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lives."""
    return next(model.parameters()).device
