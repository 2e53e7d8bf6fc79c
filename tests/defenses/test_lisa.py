"""Lisa by hand, on bowls: which data in which phase, and the pull back to where the phase began."""

from __future__ import annotations

import pytest
import torch
from tests.conftest import Bowls, bowl
from torch.testing import assert_close

from inoculate.defenses import Lisa

BATCHES = {"align": [bowl((0.0, 0.0), 1.0)], "guide": [bowl((5.0, 5.0), 1.0)]}
"""At w: the user's gradient is w, the guide's w − (5, 5)."""


def gradient(course, model):
    model.w.grad = None
    measured = course.backward(model, BATCHES)
    return model.w.grad.clone(), measured


def move(model, to):
    with torch.no_grad():
        model.w.copy_(torch.tensor(to))


def test_phases_take_turns():
    """K₁ = 2, K₂ = 3: guide, guide, user, user, user, and again."""
    model = Bowls((3.0, 4.0))
    course = Lisa(rho=0, align_steps=2, user_steps=3).start(model, steps=100)
    seen = []
    for step in range(10):
        course.before_step(step)
        found, _ = gradient(course, model)
        seen.append("guide" if torch.equal(found, torch.tensor([-2.0, -1.0])) else "user")
        assert seen[-1] == "guide" or torch.equal(found, torch.tensor([3.0, 4.0]))
    assert seen == ["guide", "guide", "user", "user", "user"] * 2


def test_the_pull_is_to_where_the_phase_began():
    model = Bowls((3.0, 4.0))
    course = Lisa(rho=2, align_steps=2, user_steps=3, proximal_from=0).start(model, steps=100)
    course.before_step(0)
    move(model, (4.0, 4.0))
    course.before_step(1)  # still the alignment phase, anchored at (3, 4): ∇f + ρ (w − anchor) = (−1, −1) + 2 (1, 0)
    found, measured = gradient(course, model)
    assert_close(found, torch.tensor([1.0, -1.0]))
    assert measured["drift"] == pytest.approx(1.0)
    move(model, (6.0, 4.0))
    assert gradient(course, model)[1] == pytest.approx({"align_loss": 1.0, "drift": 9.0})  # ½ (1 + 1), 3²
    move(model, (4.0, 4.0))
    course.before_step(2)  # the user's phase begins here: no pull yet
    found, measured = gradient(course, model)
    assert_close(found, torch.tensor([4.0, 4.0]))
    assert measured["drift"] == 0
    move(model, (4.0, 1.0))
    course.before_step(3)
    assert_close(gradient(course, model)[0], torch.tensor([4.0, 1.0]) + 2 * torch.tensor([0.0, -3.0]))


def test_no_pull_in_the_first_tenth():
    model = Bowls((3.0, 4.0))
    course = Lisa(rho=2, align_steps=50, user_steps=50).start(model, steps=100)
    course.before_step(0)
    move(model, (4.0, 4.0))
    for step, pulled in ((9, 0.0), (10, 2.0)):
        course.before_step(step)
        assert_close(gradient(course, model)[0], torch.tensor([-1.0 + pulled, -1.0]))


def test_a_resumed_course_goes_on():
    model = Bowls((3.0, 4.0))
    lisa = Lisa(rho=2, align_steps=5, user_steps=5, proximal_from=0)
    course = lisa.start(model, steps=100)
    course.before_step(0)
    move(model, (4.0, 4.0))
    course.before_step(1)
    resumed = lisa.start(model, steps=100)
    resumed.restore(course.tensors())
    resumed.before_step(1)
    assert torch.equal(gradient(resumed, model)[0], gradient(course, model)[0])
    assert_close(gradient(course, model)[0], torch.tensor([1.0, -1.0]))
