from __future__ import annotations

import pytest
import torch
from tests.conftest import Bowls, bowl
from torch.testing import assert_close

from inoculate.models.weights import (
    add_to_grad,
    averaged,
    combine,
    loss_and_grad,
    norm,
    shifted,
    trainable,
)


def test_loss_and_grad_by_hand_and_grad_left_alone():
    model = Bowls((3.0, 4.0))
    model.w.grad = torch.tensor([7.0, 7.0])
    loss, grads = loss_and_grad(model, bowl((1.0, 1.0), 2.0))
    assert loss == pytest.approx(13.0)
    assert_close(grads, [torch.tensor([4.0, 6.0])])
    assert_close(model.w.grad, torch.tensor([7.0, 7.0]))


def test_norm_is_one_over_all_tensors():
    assert norm([torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]) == pytest.approx(5.0)


def test_combine():
    a, b = [torch.tensor([1.0, 2.0])], [torch.tensor([10.0, 20.0])]
    assert_close(combine((1.0, a), (2.0, b), (-1.0, a)), [torch.tensor([20.0, 40.0])])
    assert_close(a, [torch.tensor([1.0, 2.0])])


def test_shifted_moves_and_restores_bit_for_bit():
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64).bfloat16()
    before = [w.clone() for w in model.parameters()]
    along = [torch.randn_like(w) for w in model.parameters()]
    with shifted(model, along=along, by=0.37):
        moved = [w + 0.37 * d for w, d in zip(before, along, strict=True)]
        assert all((w - m).abs().max() < 0.02 for w, m in zip(model.parameters(), moved, strict=True))
        assert not torch.equal(model.weight, before[0])
    assert all(torch.equal(w, b) for w, b in zip(model.parameters(), before, strict=True))


def test_averaged_divides_only_what_is_added():
    model = Bowls((0.0, 0.0))
    model.w.grad = torch.tensor([1.0, 1.0])
    with averaged(model, 4):
        add_to_grad(model, [torch.tensor([8.0, 4.0])])
    assert_close(model.w.grad, torch.tensor([3.0, 2.0]))


def test_trainable_leaves_out_the_frozen():
    model = Bowls((0.0, 0.0))
    assert len(trainable(model)) == 1 and trainable(model)[0] is model.w
