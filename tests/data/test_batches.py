from __future__ import annotations

import pytest
import torch

from inoculate.data.batches import IGNORED, Feed, Order, TensorFeed, pack, pad
from inoculate.data.templates import Encoded

ROWS = [Encoded([10 + i] * (3 + i), 2) for i in range(5)]


def test_pad():
    batch = pad([Encoded([5, 6, 7], 1), Encoded([8, 9], 1)], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED, 9, IGNORED]]


def test_pack():
    batch = pack([Encoded([5, 6, 7], 1), Encoded([8, 9], 1)])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7, IGNORED, 9]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5]


def feed(batch_size=2, seed=0, role="align"):
    return Feed(ROWS, batch_size, seed, role)


def test_an_epoch_sees_every_row_once_and_epochs_differ():
    stream = feed()
    assert stream.order.steps_per_epoch == 3
    first = [row.ids[0] for step in range(3) for row in stream.rows_at(step)]
    later = [[row.ids[0] for step in range(e * 3, e * 3 + 3) for row in stream.rows_at(step)] for e in range(1, 6)]
    assert sorted(first) == [10, 11, 12, 13, 14]
    assert all(sorted(order) == sorted(first) for order in later)
    assert any(order != first for order in later)


def test_a_batch_depends_on_nothing_but_its_address():
    fresh, used = feed(), feed()
    for step in (7, 2, 0):
        used.rows_at(step)
    assert fresh.rows_at(4) == used.rows_at(4)
    assert [feed(seed=1).rows_at(s) for s in range(9)] != [feed(seed=2).rows_at(s) for s in range(9)]
    assert [feed(role="align").rows_at(s) for s in range(9)] != [feed(role="harmful").rows_at(s) for s in range(9)]


def test_micro_batches_weigh_by_answer_tokens():
    """Weights times token counts, over the number of parts, are the shares of all answer tokens."""
    stream = feed(batch_size=5)
    parts = stream.batches_at(0, micro_batches=3)
    counts = [int((part["labels"] != IGNORED).sum()) for part in parts]
    weights = [float(part["loss_weight"]) for part in parts]
    assert len(parts) == 3 and len(set(counts)) > 1
    assert torch.allclose(torch.tensor(weights) / 3, torch.tensor(counts) / sum(counts))


def test_tensors_are_fed_in_the_order_of_rows():
    """The same seed and role give the same order as a feed of encoded rows."""
    numbers = torch.tensor([row.ids[0] for row in ROWS])
    stream, other = TensorFeed({"x": numbers, "labels": numbers % 2}, 2, 0, "align"), feed()
    for step in range(7):
        (batch,) = stream.batches_at(step)
        assert batch["x"].tolist() == [row.ids[0] for row in other.rows_at(step)]
        assert (batch["labels"] == batch["x"] % 2).all()
    assert len(stream) == 5


def test_micro_batches_of_tensors_weigh_what_they_hold():
    stream = TensorFeed({"x": torch.arange(5.0)}, 5, 0, "align")
    parts = stream.batches_at(0, 3)
    assert [len(part["x"]) for part in parts] == [2, 2, 1]
    mean = sum(part["x"].mean() * part["loss_weight"] for part in parts) / 3
    torch.testing.assert_close(mean, torch.arange(5.0).mean())


def lengths_of(seed: int, rows: int) -> list[int]:
    return torch.randint(3, 200, (rows,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 4), (4, 4), (10, 4), (103, 4), (1000, 8), (33, 8)])
def test_grouped_by_length_an_epoch_still_sees_every_row_once(rows, batch_size):
    lengths = lengths_of(rows, rows)
    plain, grouped = (Order(rows, batch_size, 0, "align", given) for given in (None, lengths))
    epochs = [[grouped.at(e * grouped.steps_per_epoch + s) for s in range(grouped.steps_per_epoch)] for e in range(3)]
    for epoch in epochs:
        assert sorted(row for batch in epoch for row in batch) == list(range(rows))
        assert [len(batch) for batch in epoch] == [len(plain.at(s)) for s in range(plain.steps_per_epoch)]
        whole = [batch for batch in epoch if len(batch) == batch_size]
        assert not whole or max(lengths[row] for batch in whole for row in batch) == lengths[whole[0][0]]
    again = Order(rows, batch_size, 0, "align", lengths)
    assert again.at(2 * grouped.steps_per_epoch) == epochs[2][0]
    if rows > 100:
        assert epochs[0] != epochs[1] and [Order(rows, batch_size, 1, "align", lengths).at(0)] != epochs[0][:1]


def test_grouped_by_length_there_is_less_padding_and_no_trend():
    lengths = lengths_of(0, 1000)

    def padded(order: Order) -> list[int]:
        longest = [max(lengths[row] for row in order.at(s)) for s in range(order.steps_per_epoch)]
        assert sum(longest) * 8 >= sum(lengths)
        return longest

    plain, grouped = (padded(Order(1000, 8, 0, "align", given)) for given in (None, lengths))
    assert sum(plain) * 8 > 1.6 * sum(lengths) and sum(grouped) * 8 < 1.1 * sum(lengths)
    halves = sum(grouped[:62]) / sum(grouped[63:])
    assert 0.8 < halves < 1.25
