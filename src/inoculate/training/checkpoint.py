"""Checkpoints without pickle: trainable weights and optimizer state as safetensors, the rest as JSON.

RNG and data position need no saving: both are functions of the seed and the step (see `fit` and `Feed`). Sharded
weights are saved whole, so a checkpoint does not depend on the number of processes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from inoculate.models.sharding import cut, joined, local

_FOLDER = "checkpoint"


Tensors = Mapping[str, torch.Tensor]


def save_checkpoint(
    out: Path | None,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    kept: Tensors = MappingProxyType({}),
) -> None:
    """Write a checkpoint beside the last one, then swap: a kill at any moment leaves one that is whole.

    Args:
        out: None in processes that only have their pieces to give.
        kept: what the defense keeps between steps.
    """
    weights = {name: joined(weight) for name, weight in model.named_parameters() if weight.requires_grad}
    state = {
        f"{index}.{name}": joined(tensor)
        for index, slots in optimizer.state_dict()["state"].items()
        for name, tensor in slots.items()
        if tensor is not None
    }
    held = {"weights": weights, "optimizer": state, "kept": {name: joined(tensor) for name, tensor in kept.items()}}
    if out is None:
        return
    fresh = out / f"{_FOLDER}.{step}.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        for name, tensors in held.items():
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, fresh / f"{name}.safetensors")
        progress = {name: value for name, value in schedule.state_dict().items() if name != "lr_lambdas"}
        (fresh / "progress.json").write_text(json.dumps({"step": step, "schedule": progress}))
    except Exception:
        shutil.rmtree(fresh, ignore_errors=True)  # on a full disk, half a checkpoint is in everybody's way
        raise
    before = _newest(out)
    fresh.rename(out / f"{_FOLDER}.{step}")
    if before is not None and before.name != f"{_FOLDER}.{step}":
        shutil.rmtree(before)


def load_checkpoint(
    out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Any
) -> tuple[int, dict[str, torch.Tensor]]:
    """Put model, optimizer and schedule back as they were.

    Returns:
        The step, 0 when there is no checkpoint, and what the defense kept.
    """
    folder = _newest(out)
    if folder is None:
        return 0, {}
    saved = load_file(folder / "weights.safetensors")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                local(weight).copy_(local(cut(saved[name], weight)))
    laid_out = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(folder / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = cut(tensor, laid_out[int(index)])
    progress = json.loads((folder / "progress.json").read_text())
    groups = optimizer.state_dict()["param_groups"]
    for group, rate in zip(groups, progress["schedule"]["_last_lr"], strict=True):
        group["lr"] = rate
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    schedule.load_state_dict(progress["schedule"] | {"lr_lambdas": schedule.state_dict()["lr_lambdas"]})
    kept = folder / "kept.safetensors"
    return int(progress["step"]), load_file(kept) if kept.exists() else {}


def remove_checkpoints(out: Path) -> None:
    """Delete all checkpoints, whole and partial."""
    for folder in out.glob(f"{_FOLDER}.*"):
        shutil.rmtree(folder, ignore_errors=True)


def _newest(out: Path) -> Path | None:
    whole = [folder for folder in out.glob(f"{_FOLDER}.*") if folder.suffix[1:].isdigit()]
    return max(whole, key=lambda folder: int(folder.suffix[1:]), default=None)
