"""The parts of a transformer's layers, found by their shape and not by their names.

A decoder is a list of layers alike. In each, attention is the child whose `forward` takes an `attention_mask`; the
MLP's output comes from the last other child with a matrix in it (an `mlp`, or OPT's `fc2`). So no list of class names
has to be kept, and adapters inside these parts change nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor, nn

from inoculate.core.errors import InputError


class Block(NamedTuple):
    """A layer, and its parts whose outputs are added to the residual stream."""

    layer: nn.Module
    attention: nn.Module
    mlp: nn.Module | None
    """None if no child but attention holds a matrix."""


def blocks_of(model: nn.Module) -> list[Block]:
    """The layers of a transformer, from the first on; of several stacks of layers, the longest.

    Raises:
        InputError: no list of layers with attention in each.
    """
    stacks = [stack for stack in map(_stack, model.modules()) if stack]
    if not stacks:
        raise InputError(
            "a model without layers to hook",
            field="model",
            found=type(model).__name__,
            expected="a transformer: a list of layers, each with a child that takes an attention_mask",
        )
    return max(stacks, key=len)


def mlps_of(blocks: Sequence[Block]) -> list[nn.Module]:
    """The module of each layer whose output is the MLP's, before it is added to the residual stream.

    Raises:
        InputError: for a layer without one.
    """
    found = [block.mlp for block in blocks]
    if (bare := next((i for i, mlp in enumerate(found) if mlp is None), None)) is not None:
        expected = "a child with a weight matrix beside attention"
        raise InputError("a layer with no MLP output to hook", field="model", found=f"layer {bare}", expected=expected)
    return [mlp for mlp in found if mlp is not None]


@contextmanager
def outputs_through(modules: Sequence[nn.Module], change: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """Inside the context `change(l, output)` sees the output [B, T, D] of module l, and may give another for it."""

    def hook_of(number: int) -> Callable[..., Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            hidden, *rest = output if isinstance(output, tuple) else (output,)
            changed = change(number, hidden)
            if changed is None:
                return None
            return (changed, *rest) if isinstance(output, tuple) else changed

        return hook

    with ExitStack() as stack:
        for number, module in enumerate(modules):
            stack.callback(module.register_forward_hook(hook_of(number)).remove)
        yield


def _stack(module: nn.Module) -> list[Block] | None:
    if not isinstance(module, nn.ModuleList):
        return None
    blocks = [_block(layer) for layer in module]
    return [block for block in blocks if block is not None] if all(blocks) else None


def _block(layer: nn.Module) -> Block | None:
    attention = [child for child in layer.children() if _attends(type(child))]
    if not attention:
        return None
    others = [child for child in layer.children() if child is not attention[0]]
    matrices = [child for child in others if any(weight.ndim > 1 for weight in child.parameters())]
    return Block(layer, attention[0], matrices[-1] if matrices else None)


@cache
def _attends(kind: type[nn.Module]) -> bool:
    return "attention_mask" in inspect.signature(kind.forward).parameters
