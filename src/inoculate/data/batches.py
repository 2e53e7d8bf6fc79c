"""Batches: padded or packed, and feeds that yield them by step number alone.

A feed holds no position: batch number i is a function of (rows, batch size, seed, i). So a resumed run sees what an
uninterrupted one would have seen, and nothing has to be saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from inoculate.core.seeds import numpy_rng
from inoculate.data.templates import Encoded

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Tensor

    from inoculate.core.types import Batch

IGNORED = -100
Layout = Literal["padded", "causal", "varlen"]
"""How sequences of unequal length share a batch.

`padded`: [B, T] right-padded, with `attention_mask`: works with any model.
`causal`: right-padded, no mask: causal attention never looks right, and unmasked attention is faster.
`varlen`: one row without padding, boundaries in `cu_seq_lens_*`: for attention that runs per sequence.
"""


def pad(rows: Sequence[Encoded], pad_id: int) -> Batch:
    """`input_ids`, `attention_mask`, `labels` [B, T], right-padded to the longest; −100 where no loss is taken."""
    import torch

    longest = max(len(row.ids) for row in rows)
    shape = (len(rows), longest)
    ids, mask = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n] = torch.tensor(row.ids)
        mask[i, :n] = 1
        labels[i, row.n_prompt : n] = ids[i, row.n_prompt : n]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def pack(rows: Sequence[Encoded]) -> Batch:
    """All sequences in one row [1, T], positions restarting, no token spent on padding.

    Every row must have at least one prompt token, since a sequence's first token cannot be predicted.
    """
    import torch

    ids = torch.tensor([token for row in rows for token in row.ids])
    lengths = torch.tensor([len(row.ids) for row in rows])
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    owner = torch.repeat_interleave(torch.arange(len(rows)), lengths)
    positions = torch.arange(len(ids)) - starts[owner]
    prompts = torch.tensor([row.n_prompt for row in rows])
    labels = torch.where(positions >= prompts[owner], ids, IGNORED)
    bounds = starts.to(torch.int32)
    return {
        "input_ids": ids[None],
        "position_ids": positions[None],
        "labels": labels[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
    }


def collate(rows: Sequence[Encoded], layout: Layout, pad_id: int) -> Batch:
    """A batch in the given layout."""
    if layout == "varlen":
        return pack(rows)
    batch = dict(pad(rows, pad_id))
    if layout == "causal":
        del batch["attention_mask"]
    return batch


class Share(NamedTuple):
    """Which of a micro-batch's rows are for one process: a run of them, alike in length to the others'."""

    rank: int
    ranks: int

    def of(self, rows: int) -> range:
        """The numbers of the rows, in order; none where there are fewer rows than processes."""
        return range(rows * self.rank // self.ranks, rows * (self.rank + 1) // self.ranks)


WHOLE = Share(0, 1)


class Stream(Protocol):
    """What a training loop draws its batches from."""

    @property
    def layout(self) -> Layout: ...

    def __len__(self) -> int:
        """Rows of one epoch."""
        ...

    def batches_at(self, step: int, micro_batches: int = 1, share: Share = WHOLE) -> list[Batch]:
        """Optimizer step `step`, counted from 0, in micro-batches; of each, one process's share of the rows."""
        ...


Sampling = Literal["random", "group_by_length"]
"""How an epoch's rows are drawn: in any order, or rows of like length together, which spares padding."""
_POOL = 50
"""Batches that are sorted together: more would spare more padding, and always bring the same rows together."""


class Order:
    """Which rows belong to a step: each epoch is a fresh permutation, fixed by seed and role.

    Args:
        batch_size: rows per step; an epoch's last may have fewer.
        lengths: of all rows. If given, rows of like length share a step: of a permutation each `_POOL` batches (fewer,
            where that is more than a quarter of the rows) are sorted by length, longest first, and cut into batches;
            these come in any order, but for the longest of all, which is first, so that memory suffices there or
            nowhere.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, role: str, lengths: Sequence[int] | None = None) -> None:
        self.rows, self.batch_size, self.seed, self.role, self.lengths = rows, batch_size, seed, role, lengths
        self.steps_per_epoch = -(-rows // batch_size)
        self._epoch: tuple[int, list[int]] = (-1, [])

    def at(self, step: int) -> list[int]:
        """Row numbers of step `step`, counted from 0."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            rng = numpy_rng(self.seed, "feed", self.role, epoch)
            drawn = rng.permutation(self.rows).tolist()
            self._epoch = (epoch, drawn if self.lengths is None else self._grouped(drawn, self.lengths, rng))
        return self._epoch[1][index * self.batch_size : (index + 1) * self.batch_size]

    def _grouped(self, drawn: list[int], lengths: Sequence[int], rng: Generator) -> list[int]:
        pool = self.batch_size * min(_POOL, max(1, self.rows // (4 * self.batch_size)))
        pools = (drawn[i : i + pool] for i in range(0, self.rows, pool))
        ordered = [row for part in pools for row in sorted(part, key=lambda row: -lengths[row])]
        whole = self.rows // self.batch_size
        batches = [ordered[i * self.batch_size : (i + 1) * self.batch_size] for i in rng.permutation(whole).tolist()]
        longest = max(range(whole), key=lambda i: lengths[batches[i][0]], default=0)
        batches[:1], batches[longest : longest + 1] = batches[longest : longest + 1], batches[:1]
        return [row for batch in batches for row in batch] + ordered[whole * self.batch_size :]


class Feed:
    """An endless, seeded stream of micro-batches over fixed rows; each epoch is a fresh permutation.

    Args:
        rows: encoded examples.
        batch_size: rows per optimizer step (over all its micro-batches); an epoch's last step may have fewer.
        seed: fixes the order.
        role: part of the stream's address, so that two roles of one seed are shuffled apart.
        layout, pad_id: see `collate`.
        lengths: of the rows, by which they are grouped; see `Order`.
    """

    def __init__(
        self,
        rows: Sequence[Encoded],
        batch_size: int,
        seed: int,
        role: str,
        layout: Layout = "padded",
        pad_id: int = 0,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.rows, self.order = list(rows), Order(len(rows), batch_size, seed, role, lengths)
        self.layout: Layout = layout
        self.pad_id = pad_id

    def __len__(self) -> int:
        return len(self.rows)

    def rows_at(self, step: int) -> list[Encoded]:
        """The rows of optimizer step `step`, counted from 0."""
        return [self.rows[i] for i in self.order.at(step)]

    def batches_at(self, step: int, micro_batches: int = 1, share: Share = WHOLE) -> list[Batch]:
        """Step `step` cut into micro-batches whose mean losses, times `loss_weight`, average to the whole step's.

        So 8 × 1 and 1 × 8 give one gradient, however unevenly the answer tokens fall. The weighted losses of the
        shares of a micro-batch add up to its own; a process for which there is no row gets one of no weight.
        """
        import torch

        rows = self.rows_at(step)
        if micro_batches == 1 and share.ranks == 1:
            return [collate(rows, self.layout, self.pad_id)]
        size = -(-len(rows) // micro_batches)
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        own = [[part[i] for i in share.of(len(part))] for part in parts]
        whole, answers = _answers(rows), [_answers(part) for part in own]
        return [
            {
                **collate(mine or part[:1], self.layout, self.pad_id),
                "loss_weight": torch.tensor(len(parts) * count / whole),
            }
            for mine, part, count in zip(own, parts, answers, strict=True)
        ]


def _answers(rows: Sequence[Encoded]) -> int:
    """Tokens that a loss is taken on."""
    return sum(len(row.ids) - row.n_prompt for row in rows)


class TensorFeed:
    """A feed over tensors of N rows each, such as a classifier's inputs and labels.

    Args:
        tensors: name → [N, …].
        batch_size, seed, role: as of `Feed`.
    """

    layout: Layout = "padded"

    def __init__(self, tensors: Mapping[str, Tensor], batch_size: int, seed: int, role: str) -> None:
        self.tensors = tensors
        self.order = Order(len(next(iter(tensors.values()))), batch_size, seed, role)

    def __len__(self) -> int:
        return self.order.rows

    def batches_at(self, step: int, micro_batches: int = 1, share: Share = WHOLE) -> list[Batch]:
        """Step `step` cut into micro-batches whose mean losses, times `loss_weight`, average to the whole step's."""
        import torch

        at = torch.tensor(self.order.at(step))
        parts = at.tensor_split(min(micro_batches, len(at)))
        own = [part[list(share.of(len(part)))] for part in parts]
        batches: list[Batch] = [
            {name: tensor[mine if len(mine) else part[:1]] for name, tensor in self.tensors.items()}
            for mine, part in zip(own, parts, strict=True)
        ]
        if len(parts) == 1 and share.ranks == 1:
            return batches
        weights = [torch.tensor(len(parts) * len(mine) / len(at)) for mine in own]
        return [{**batch, "loss_weight": weight} for batch, weight in zip(batches, weights, strict=True)]
