"""What running a model would cost, found by running it on tensors that have shapes and no numbers.

Weights are fake tensors, so every operation of the real code happens, kernels apart: FLOPs are counted by torch's
counter, and memory by following each storage from the operation that makes it to the end of its last reference. The
batches stay real, since the code looks at them: labels decide where logits are taken, boundaries what is attended.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

_aten: Any = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


PROCESSOR_ATTENTION: Mapping[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""What torch's counter lacks: fused attention on the processor, over shapes. As in all of its formulas, the half that a
causal mask cuts off is counted too."""
_FORMULAS: Mapping[Any, Any] = {
    **flop_registry,
    **{kernel: shape_wrapper(count) for kernel, count in PROCESSOR_ATTENTION.items()},
}
"""torch's formulas for matrix products, convolutions and attention, 2 FLOPs to a multiply-add; and the processor's."""


def without_numbers(model: nn.Module) -> nn.Module:
    """The model with fake tensors on the processor for its weights and buffers (on meta, or real), in place.

    Weights that are one stay one.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            weight = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if weight else empty
        return made[id(tensor)]

    originals = [*model.parameters(), *model.buffers()]  # held, so that no id is used twice
    for module in model.modules():
        for tensors in cast("tuple[dict[str, Any], ...]", (module._parameters, module._buffers)):
            tensors.update({name: fake(tensor) for name, tensor in tensors.items() if tensor is not None})
    del originals
    return model


@contextmanager
def traced(model: nn.Module) -> Iterator[Footprint]:
    """Inside, what is done with a model is counted. Of one `without_numbers`, a number that is asked for is 1."""
    with Footprint([*model.parameters(), *model.buffers()]) as footprint:
        yield footprint


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors, those that share a storage counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


class Footprint(TorchDispatchMode):
    """What has happened inside `traced`.

    torch's own counting mode is not used: its hooks on modules keep what gradient checkpointing makes again.
    """

    flops: int = 0
    """So far."""
    live: int = 0
    """Bytes of storages that were made inside and are still held."""
    peak: int = 0
    """The most that `live` has been, since it was last set."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else 1
        if func is _aten.index.Tensor and isinstance(args[0], FakeTensor):
            args = (args[0], _as_numbers(args[1]))
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in _FORMULAS:
            self.flops += _FORMULAS[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._follow(tensor)
        return out

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += self._sizes[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


def _as_numbers(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Masks as the positions where they are true: how many there are is known of a real mask, and of no fake one."""
    found: list[Tensor | None] = []
    for index in indices:
        masks = index is not None and index.dtype == torch.bool
        found += index.nonzero().unbind(1) if masks and index is not None else [index]
    return found
