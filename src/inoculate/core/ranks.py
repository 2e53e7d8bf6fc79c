"""The processes of one launch (`accelerate launch`, torchrun): how many there are, which one this is, what they share.

A training run in several processes gives each its share of every batch's rows. A quantity of the whole batch is then a
sum over processes, and the few functions here are all that the rest of the package knows of it. In one process, and
inside `alone`, each is the identity and touches nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_BUCKET = 2**24
"""Numbers sent at one time: small tensors travel together, and the copy of what is sent stays small."""
_alone = False


def launched() -> bool:
    """Whether a launcher started this process as one of several. Asks the environment alone, before torch is there."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def rank_in_launch() -> int:
    """This process's number in the launch, whoever it works with at present."""
    return int(os.environ["RANK"]) if launched() else 0


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank_in_launch() == 0


def join() -> None:
    """Meet the other processes of this launch. They wait for each other up to a day: the first may work alone."""
    if launched():
        from accelerate import PartialState

        PartialState(timeout=timedelta(days=1))


def count() -> int:
    """Processes that train together; 1 where there is no process group."""
    if _alone or "RANK" not in os.environ:
        return 1
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    if count() == 1:
        return 0
    import torch.distributed as dist

    return dist.get_rank()


@contextmanager
def alone() -> Iterator[None]:
    """Inside the context this process works by itself, whatever the others do."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def told(value: T) -> T:
    """The first process's value, in all of them; it must be plain data."""
    if count() == 1:
        return value
    import torch.distributed as dist

    box: list[T] = [value]
    dist.broadcast_object_list(box)
    return box[0]


def by_the_first(call: Callable[[], T]) -> T:
    """What a call returns, or raises, in the first process, in all of them; it is made there alone."""
    outcome: T | Exception | None = None
    if rank() == 0:
        try:
            with alone():
                outcome = call()
        except Exception as error:  # noqa: BLE001  raised again below, in every process
            outcome = error
    heard: Any = told(outcome)
    if isinstance(heard, Exception):
        raise heard
    return heard


def gathered(value: T) -> list[T]:
    """Every process's value, by rank; plain data."""
    if count() == 1:
        return [value]
    import torch.distributed as dist

    box: list[T] = [value] * count()
    dist.all_gather_object(box, value)
    return box


def total(value: float) -> float:
    """The sum over processes of a number."""
    if count() == 1:
        return value
    import torch
    import torch.distributed as dist

    held = torch.tensor(value, dtype=torch.float64, device=_device())
    dist.all_reduce(held)
    return float(held)


def sum_over(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over processes, in place."""
    if count() == 1 or not tensors:
        return
    import torch
    import torch.distributed as dist

    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in bucket])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def of_the_first(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by the first process's, in place."""
    if count() > 1:
        import torch.distributed as dist

        for tensor in tensors:
            dist.broadcast(tensor, 0)


def whole(part: Tensor) -> Tensor:
    """The sum over processes of a tensor, whose gradient is that of this process's part.

    So a loss that is made of such sums has, in every process, the gradient that this process's rows contribute.
    """
    if count() == 1:
        return part
    sums = part.detach().clone()
    sum_over([sums])
    return part + (sums - part.detach())


def rows(own_MD: Tensor) -> Tensor:
    """The rows [ΣM, D] of all processes, by rank; only this process's carry a gradient. M may differ, or be 0."""
    if count() == 1:
        return own_MD
    import torch
    import torch.distributed as dist

    counts = gathered(len(own_MD))
    padded = own_MD.new_zeros(max(counts), *own_MD.shape[1:])
    padded[: len(own_MD)] = own_MD.detach()
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded)
    parts = [part[:n] for part, n in zip(found, counts, strict=True)]
    parts[rank()] = own_MD
    return torch.cat(parts)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors of one dtype, of `_BUCKET` numbers or one tensor each."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > _BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def _device() -> str:
    from accelerate import PartialState

    return str(PartialState().device)
