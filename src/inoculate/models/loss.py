"""The loss of a batch: mean cross-entropy over labeled tokens, with logits only where a label stands.

Many of a causal LM's logits are read by nobody (prompts, padding), and a usual cross-entropy holds four more copies of
the others in float32. Here the head is applied where a label stands, and large logits are worked on in pieces. No
model's insides are touched: what a decoder does to its logits (soft caps, scales) stays its own.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inoculate.core.types import Batch

IGNORED = -100
_CHUNK = 2**20
"""Logits worked on at one time: few enough to stay in a processor's cache. Up to here nothing is worth a detour."""
_PIECES = 64
"""At most: logits of a large vocabulary take larger pieces, and not thousands of tiny kernels."""


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Mean loss of a batch, 0-dim, times the batch's `loss_weight` if it has one.

    Causal LMs: mean over tokens whose label is not −100 (labels are aligned with `input_ids`, as everywhere in
    Hugging Face; the shift is made here). Other models (classifiers): the model's own `.loss`.
    """
    inputs = dict(batch)
    weight = inputs.pop("loss_weight", None)
    loss = _causal_loss(model, inputs) if _keeps_logits(type(inner_model(model))) else model(**inputs).loss
    return loss if weight is None else loss * weight


def _causal_loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    labels_BT = inputs.pop("labels")[:, 1:]
    columns = (labels_BT != IGNORED).any(dim=0).nonzero().squeeze(1)
    inputs |= {"logits_to_keep": columns, "use_cache": False}  # type: ignore[dict-item]
    labels_BT = labels_BT[:, columns]
    if labels_BT.numel() * inner_model(model).config.get_text_config().vocab_size <= _CHUNK:
        logits_BTV = model(**inputs).logits
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=IGNORED)
    labeled_BT = labels_BT != IGNORED
    return _CrossEntropy.apply(_logits_at(model, inputs, labeled_BT), labels_BT[labeled_BT])


def labeled_logits(model: nn.Module, batch: Batch) -> Tensor:
    """A causal LM's logits [N, V] for the N tokens of a batch that have a label, row by row."""
    inputs: dict[str, Any] = dict(batch)
    inputs.pop("loss_weight", None)
    labels_BT = inputs.pop("labels")[:, 1:]
    columns = (labels_BT != IGNORED).any(dim=0).nonzero().squeeze(1)
    inputs |= {"logits_to_keep": columns, "use_cache": False}
    return _logits_at(model, inputs, labels_BT[:, columns] != IGNORED)


def divergence_from(reference_NV: Tensor) -> Callable[[nn.Module, Batch], Tensor]:
    """A loss: mean over labeled tokens of KL(reference ‖ model), nats, times the batch's `loss_weight`.

    Args:
        reference_NV: logits of the batch's labeled tokens, from `labeled_logits`.
    """

    def divergence(model: nn.Module, batch: Batch) -> Tensor:
        log_p, log_q = (
            logits_NV.float().log_softmax(dim=1) for logits_NV in (reference_NV, labeled_logits(model, batch))
        )
        loss = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        weight = batch.get("loss_weight")
        return loss if weight is None else loss * weight

    return divergence


def _logits_at(model: nn.Module, inputs: dict[str, Any], labeled_BT: Tensor) -> Tensor:
    with _head_sees(model, labeled_BT):
        logits_NV = model(**inputs).logits.flatten(0, 1)
    return logits_NV if len(logits_NV) == int(labeled_BT.sum()) else logits_NV[labeled_BT.flatten()]


@contextmanager
def _head_sees(model: nn.Module, labeled_BT: Tensor) -> Iterator[None]:
    """Inside the context the head is given the labeled positions alone, as one row.

    `logits_to_keep` picks columns, which in a padded batch are labeled in some rows only.
    """
    head = inner_model(model).get_output_embeddings()
    if head is None or bool(labeled_BT.all()):
        yield
        return

    def pick(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_BTD, *rest = args
        return (hidden_BTD[labeled_BT][None] if hidden_BTD.shape[:2] == labeled_BT.shape else hidden_BTD, *rest)

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


class _CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of logits [N, V] under labels [N], in float32 a few rows at a time.

    `F.cross_entropy` on bf16 logits holds them, their float32 copy, its log-softmax and the gradients of both; here it
    is the logits and their gradient. Differentiable twice.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
        size = _rows(logits_NV)
        pairs = zip(logits_NV.split(size), labels_N.split(size), strict=True)
        losses = [F.cross_entropy(chunk.float(), labels, reduction="sum") for chunk, labels in pairs]
        return torch.stack(losses).sum() / len(labels_N)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits_NV, labels_N = ctx.saved_tensors
        scale = grad / len(labels_N)
        if torch.is_grad_enabled():  # a graph of the gradient is wanted: no writing into buffers
            share_NV = logits_NV.float().softmax(dim=1) * scale
            return share_NV.scatter_add(1, labels_N[:, None], -scale.expand(len(labels_N), 1)).to(logits_NV.dtype), None
        size, slope_NV = _rows(logits_NV), torch.empty_like(logits_NV)
        for chunk, labels, slope in zip(logits_NV.split(size), labels_N.split(size), slope_NV.split(size), strict=True):
            share = torch.softmax(chunk, dim=1, dtype=torch.float32).mul_(scale)
            slope.copy_(share.scatter_add_(1, labels[:, None], -scale.expand(len(labels), 1)))
        return slope_NV, None


def _rows(logits_NV: Tensor) -> int:
    rows, vocabulary = logits_NV.shape
    return max(1, _CHUNK // vocabulary, -(-rows // _PIECES))


def inner_model(model: Any) -> Any:
    """The Hugging Face model inside data-parallel and adapter wrappers."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


@cache
def _keeps_logits(kind: type[nn.Module]) -> bool:
    return "logits_to_keep" in inspect.signature(kind.forward).parameters


def log_vocabulary(model: nn.Module) -> float | None:
    """log V of a causal LM, the loss in nats of knowing nothing; None of other models."""
    inner = inner_model(model)
    return math.log(inner.config.get_text_config().vocab_size) if _keeps_logits(type(inner)) else None


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lives."""
    return next(model.parameters()).device
