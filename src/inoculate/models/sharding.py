"""A model's weights over several processes: each holds a piece of every weight (torch's `fully_shard`, FSDP2).

Blocks are gathered one at a time, on the way forward and back; what is outside of blocks (embeddings, last norm, head)
stays gathered between the two. Everything that this package does to weights and gradients is done number by number, so
it works on the pieces as they lie, and only a norm needs a sum over processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inoculate.core import ranks

if TYPE_CHECKING:
    from torch import Tensor, nn


def wanted() -> bool:
    """Whether the launcher was told to shard: `accelerate launch --use_fsdp --fsdp_version 2`."""
    return ranks.count() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's weights are in pieces."""
    return any(hasattr(weight, "device_mesh") for weight in model.parameters())


def shard(model: nn.Module) -> None:
    """Leave each process its piece of every weight, in place; of a model on the CPU the pieces go to the device.

    Of accelerate's settings `fsdp_offload_params` and `fsdp_reshard_after_forward` count. Gradients are summed, not
    averaged: a process's loss is its share of the batch's.

    Raises:
        InputError: a launch under FSDP's first version, or weights of several dtypes in one block.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import FSDPModule, fully_shard

    from inoculate.core.errors import InputError
    from inoculate.models.blocks import blocks_of

    plugin: Any = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        found, expected = plugin.fsdp_version, "--fsdp_version 2"
        raise InputError("this version of FSDP is not supported", field="fsdp_version", found=found, expected=expected)
    dtypes = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    if len(dtypes) > 1:
        named = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        expected = "one: load the model in float32, with training.bf16 for speed"
        raise InputError("weights that train are sharded in one dtype", field="dtype", found=named, expected=expected)
    for block in blocks_of(model):
        fully_shard(block.layer, reshard_after_forward=plugin.reshard_after_forward, offload_policy=plugin.cpu_offload)
    fully_shard(model, offload_policy=plugin.cpu_offload)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other


def gathered_bytes(model: nn.Module) -> tuple[int, int]:
    """What a process holds beyond its pieces at the peak of a step: bytes of weights, and of their gradients.

    Two blocks, since the next one is gathered while one computes, and all that is in no block; gradients of one block
    and of what is in none, before they are cut.

    Raises:
        InputError: a model without blocks.
    """
    from inoculate.models.blocks import blocks_of
    from inoculate.models.footprint import held_bytes

    blocks = [list(block.layer.parameters()) for block in blocks_of(model)]
    inside = {id(weight) for block in blocks for weight in block}
    outside = [weight for weight in model.parameters() if id(weight) not in inside]
    learned = [[weight for weight in part if weight.requires_grad] for part in (*blocks, outside)]
    *in_blocks, in_none = map(held_bytes, learned)
    return 2 * max(map(held_bytes, blocks)) + held_bytes(outside), max(in_blocks) + in_none


def local(tensor: Tensor) -> Tensor:
    """This process's piece of a tensor, sharing its memory; a whole tensor itself."""
    return tensor.detach().to_local() if hasattr(tensor, "device_mesh") else tensor  # type: ignore[operator]


def like(piece: Tensor, weight: Tensor) -> Tensor:
    """A piece, or a whole tensor, laid out over processes as a weight is."""
    mesh: Any = getattr(weight, "device_mesh", None)
    if mesh is None:
        return piece
    from torch.distributed.tensor import DTensor

    placements: Any = weight.placements  # type: ignore[attr-defined]
    return DTensor.from_local(piece, mesh, placements, run_check=False, shape=weight.shape, stride=weight.stride())


def cut(tensor: Tensor, weight: Tensor) -> Tensor:
    """A whole tensor of a weight's shape, of which each process keeps its piece as of the weight."""
    mesh: Any = getattr(weight, "device_mesh", None)
    if mesh is None or tensor.shape != weight.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(local(weight).device), mesh, weight.placements)  # type: ignore[attr-defined]


def joined(tensor: Tensor) -> Tensor:
    """The whole of a tensor that lies in pieces, on the first process's CPU; every process must ask for it."""
    if not hasattr(tensor, "device_mesh"):
        return tensor.detach()
    together = tensor.detach().full_tensor()  # type: ignore[operator]
    return together.cpu() if ranks.rank() == 0 else together.new_empty(0)


def reshard(model: nn.Module) -> None:
    """Put gathered weights back into pieces: after a forward pass without a backward pass some are whole."""
    if ranks.count() == 1:
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_state(model: nn.Module) -> Mapping[str, Tensor] | None:
    """A sharded model's whole state on the CPU of the first process, nothing in the others; None of any other model."""
    if not is_sharded(model):
        return None
    reshard(model)
    found: dict[int, Tensor] = {}  # tied weights once
    for tensor in model.state_dict(keep_vars=True).values():
        if id(tensor) not in found:
            found[id(tensor)] = joined(tensor)
    state = {name: found[id(tensor)] for name, tensor in model.state_dict(keep_vars=True).items()}
    return state if ranks.rank() == 0 else {}
