"""Why a security vector works, in numbers: what is left to learn from harmful data while it is mounted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from inoculate.core.types import Batch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from inoculate.models.vectors import Mounted

MOUNTED = "mounted_"
"""Prefix of metrics that were taken with the vector in the forward pass; those without it are what is served."""
WHOLE = "all"


def mounted_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `Evaluator.measure` with their metrics named as mounted."""
    return [{**row, "metric": MOUNTED + row["metric"]} for row in rows]


def diagnose(model: nn.Module, vector: Mounted, harmful: Batch | None, user: Batch) -> list[dict[str, Any]]:
    """Loss and gradient of a harmful batch, and the cosine between the user's gradient and the harmful one.

    Gradients are those of the model's trainable weights, in eval mode. Each number with the vector mounted
    (`mounted_…`) and without, over all layers (`layer` "all") and layer by layer.

    Args:
        harmful: None if the user's data hold nothing harmful: then there is nothing to compare.

    Returns:
        Rows with `metric`, `value`, `layer`: `harmful_loss_train`, `harmful_grad_norm`, `user_grad_norm` (L2) and
        `gradient_cosine`, which is left out where a gradient is zero.
    """
    if harmful is None:
        return []
    rows = []
    for prefix, state in ((MOUNTED, nullcontext()), ("", vector.unmounted())):
        with state:
            rows += [{**row, "metric": prefix + row["metric"]} for row in _compare(model, harmful, user)]
    return rows


def harm_rows(model: nn.Module, harmful: Batch) -> list[dict[str, Any]]:
    """How far harmful training data still move a model: Booster's measure of harmful perturbation.

    In eval mode, over the trainable weights; the model is left as it is.

    Returns:
        Rows with `metric` and `value`: `harmful_loss_train` (nats per token) and `harmful_grad_norm` (L2).
    """
    from inoculate.models.weights import eval_mode, loss_and_grad, norm

    with eval_mode(model):
        loss, grad = loss_and_grad(model, harmful)
    measured = {"harmful_loss_train": loss, "harmful_grad_norm": norm(grad)}
    return [{"metric": metric, "value": value, "layer": WHOLE} for metric, value in measured.items()]


def _compare(model: nn.Module, harmful: Batch, user: Batch) -> Iterator[dict[str, Any]]:
    from inoculate.models.weights import eval_mode, loss_and_grad, norm

    with eval_mode(model):
        loss, grad_harmful = loss_and_grad(model, harmful)
        _, grad_user = loss_and_grad(model, user)
    yield {"metric": "harmful_loss_train", "value": loss, "layer": WHOLE}
    for layer, members in _layers(model).items():
        theirs, ours = [grad_harmful[i] for i in members], [grad_user[i] for i in members]
        lengths = norm(theirs), norm(ours)
        yield {"metric": "harmful_grad_norm", "value": lengths[0], "layer": layer}
        yield {"metric": "user_grad_norm", "value": lengths[1], "layer": layer}
        if all(lengths):
            yield {"metric": "gradient_cosine", "value": _dot(theirs, ours) / (lengths[0] * lengths[1]), "layer": layer}


def _layers(model: nn.Module) -> dict[str, list[int]]:
    """Layer → positions of its weights among the trainable ones. What belongs to no layer goes by its own name."""
    layers: dict[str, list[int]] = defaultdict(list)
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    for i, name in enumerate(names):
        parts = name.split(".")
        number = next((at for at, part in enumerate(parts) if part.isdigit()), None)
        layers[WHOLE].append(i)
        layers[f"layer {parts[number]}" if number is not None else parts[-2]].append(i)
    return dict(layers)


def _dot(one: list[Tensor], other: list[Tensor]) -> float:
    return sum(float((a.float() * b.float()).sum()) for a, b in zip(one, other, strict=True))
