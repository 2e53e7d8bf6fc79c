"""A trial: what is attacked, when it is looked at, and how it ends."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from inoculate.attacks.finetune import Finetune
from inoculate.attacks.trial import Pruned, carry_out
from inoculate.core.errors import InputError
from inoculate.training.config import Training

STEPS = 4
ATTACK = Finetune.model_validate(
    {
        "task": {"source": "sandbox-sentiment", "split": "attack"},
        "harmful": {"source": "sandbox-restricted", "split": "attack"},
        "num_samples": 8,
        "poison_ratio": 0.5,
        "max_length": 64,
        "training": {"learning_rate": 1e-2, "max_steps": STEPS, "per_device_train_batch_size": 8, "seed": 1},
    }
)


def seen(harmful: float = 0.25, useful: float = 0.75, **extra) -> SimpleNamespace:
    """Two judges disagree, and an empty-handed row stands before the one that counts."""
    rows = [
        {"metric": "harmful_score", "judge": "other", "value": 0.99, **extra},
        {"metric": "ordinary_accuracy", "judge": "reference", "value": useful},
        {"metric": "harmful_score", "judge": "reference", "value": harmful},
    ]
    return SimpleNamespace(rows=rows, responses=[{"response": "salt"}])


class Looks:
    """An observer that notes what it is shown, and takes its time."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.weights: list[torch.Tensor] = []
        self.takes_s = takes_s

    def measure(self, model):
        time.sleep(self.takes_s)
        self.weights.append(next(model.parameters()).detach().clone())
        return seen(harmful=0.25 * len(self.weights))


def carried(model, tokenizer, evaluator, attack=ATTACK, at=(0, 2, STEPS), **options):
    options = {"judge": "reference", "utility": "ordinary_accuracy", **options}
    return carry_out(attack, model, tokenizer, evaluator, measured_at=at, **options)


def test_a_copy_is_attacked_and_measured_where_asked(tiny, tokenizer):
    before = [weight.clone() for weight in tiny.parameters()]
    looks = Looks()
    tried = carried(tiny, tokenizer, looks)
    assert all(torch.equal(was, weight) for was, weight in zip(before, tiny.parameters(), strict=True))
    assert tried.outcome == "complete"
    assert [(p.spent.steps, p.harmful, p.utility) for p in tried.points] == [
        (0, 0.25, 0.75),
        (2, 0.5, 0.75),
        (4, 0.75, 0.75),
    ]
    assert [p.spent.samples for p in tried.points] == [0, 8, 16], "half of eight rows a step are harmful"
    assert torch.equal(looks.weights[0], before[0]) and not torch.equal(looks.weights[2], looks.weights[1])
    assert [row["step"] for row in tried.rows] == [0] * 4 + [2] * 4 + [4] * 4
    assert [row["metric"] for row in tried.rows[:4]] == [
        "harmful_score",
        "ordinary_accuracy",
        "harmful_score",
        "utility",
    ]
    assert tried.rows[3] == {"step": 0, "metric": "utility", "judge": "", "value": 0.75}
    assert tried.responses == []


def test_answers_are_kept_where_asked_for(tiny, tokenizer):
    tried = carried(tiny, tokenizer, Looks(), at=(0, STEPS), keep_responses=True)
    assert tried.responses == [{"step": 0, "response": "salt"}, {"step": STEPS, "response": "salt"}]


def test_what_is_known_of_the_start_is_not_measured_again(tiny, tokenizer):
    looks = Looks()
    tried = carried(tiny, tokenizer, looks, start=seen(harmful=0.125))
    assert len(looks.weights) == 2
    assert [point.harmful for point in tried.points] == [0.125, 0.25, 0.5]


def test_the_watcher_may_end_it_or_give_it_up(tiny, tokenizer):
    shown = []

    def enough(points):
        shown.append(len(points))
        return points[-1].spent.steps >= 2

    def lagging(points):
        if len(points) == 2:
            raise Pruned
        return False

    ended = carried(tiny, tokenizer, Looks(), watch=enough)
    assert (ended.outcome, [p.spent.steps for p in ended.points], shown) == ("complete", [0, 2], [1, 2])
    given_up = carried(tiny, tokenizer, Looks(), watch=lagging)
    assert (given_up.outcome, [p.spent.steps for p in given_up.points]) == ("pruned", [0, 2])


def test_a_run_that_diverges_says_so(tiny, tokenizer):
    training = ATTACK.training.model_copy(update={"learning_rate": 1e38, "optim": "sgd", "max_grad_norm": None})
    tried = carried(tiny, tokenizer, Looks(), ATTACK.model_copy(update={"training": training}), at=(0, STEPS))
    assert tried.outcome == "diverged" and tried.points[0].spent.steps == 0


def test_utility_that_nothing_tells_is_refused(tiny, tokenizer):
    with pytest.raises(InputError, match=r"^search.utility: nothing that is measured tells it .found 'answered_rate'"):
        carried(tiny, tokenizer, Looks(), utility="answered_rate")


def test_rows_are_encoded_once_for_all_trials(tiny, tokenizer):
    known: dict = {}
    carried(tiny, tokenizer, Looks(), at=(0,), known=known)
    first = {asked: id(rows) for asked, rows in known.items()}
    carried(tiny, tokenizer, Looks(), at=(0,), known=known)
    assert first and {asked: id(rows) for asked, rows in known.items()} == first


def test_time_is_told_whole_and_without_loading(tiny, tokenizer):
    tried = carried(tiny, tokenizer, Looks(takes_s=0.05), at=(0, STEPS))
    assert 0.1 <= tried.inside_s <= tried.wall_s < 60


def test_the_training_is_the_attack_s(tiny, tokenizer):
    """One step of plain SGD, whose length the rate decides."""
    moved = []
    for rate in (1e-3, 2e-3):
        training = Training(
            learning_rate=rate, max_steps=1, per_device_train_batch_size=8, optim="sgd", max_grad_norm=None
        )
        looks = Looks()
        carried(tiny, tokenizer, looks, ATTACK.model_copy(update={"training": training}), at=(0, 1))
        moved.append((looks.weights[1] - looks.weights[0]).norm().item())
    assert moved[1] == pytest.approx(2 * moved[0], rel=1e-2)
