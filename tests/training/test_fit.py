"""The loop: by hand on a bowl, then what must hold on a language model."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from tests.conftest import Bowls, bowl
from torch.testing import assert_close

from inoculate.core.errors import InputError
from inoculate.data.batches import WHOLE, Feed
from inoculate.data.templates import Encoded
from inoculate.defenses import MLAC, SFT, Booster, Lisa
from inoculate.models.sandbox import TinyModel
from inoculate.training.config import Training
from inoculate.training.fit import StopRun, fit
from inoculate.training.optim import build_optimizer


def model_of(tokenizer):
    return TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2).build(len(tokenizer), seed=0)


def feeds_of(rows, batch_size=8, **options):
    return {role: Feed(encoded, batch_size, 0, role, **options) for role, encoded in rows.items()}


def weights_of(model):
    return [weight.detach().clone() for weight in model.parameters()]


class BowlFeed(Feed):
    """A feed of one bowl."""

    def __init__(self):
        super().__init__([SimpleNamespace()], 1, 0, "align")

    def batches_at(self, step, micro_batches=1, share=WHOLE):
        return [bowl((0.0, 0.0), 1.0)]


def test_sgd_by_hand_and_the_clip_is_of_the_combined_gradient():
    """∇ = w; unclipped: w ← .9 w twice. Clipped to 1: a step of length .1 along w."""
    model = Bowls((3.0, 4.0))
    fit(model, SFT(), {"align": BowlFeed()}, Training(learning_rate=0.1, optim="sgd", max_steps=2, max_grad_norm=None))
    assert_close(model.w.detach(), torch.tensor([3.0, 4.0]) * 0.81)
    model = Bowls((3.0, 4.0))
    fit(model, SFT(), {"align": BowlFeed()}, Training(learning_rate=0.1, optim="sgd", max_steps=1, max_grad_norm=1.0))
    assert_close(model.w.detach(), torch.tensor([3.0, 4.0]) - 0.1 * torch.tensor([0.6, 0.8]), rtol=1e-4, atol=1e-5)


def test_schedule():
    model, seen = Bowls((1.0, 0.0)), []
    training = Training(learning_rate=0.1, optim="sgd", max_steps=4, lr_scheduler_type="linear", max_grad_norm=None)
    fit(
        model,
        SFT(),
        {"align": BowlFeed()},
        training,
        observe=lambda s: seen.append(model.w[0].item()) or [],
        observe_at=range(5),
    )
    factors = [later / earlier for earlier, later in itertools.pairwise(seen)]
    assert factors == pytest.approx([1 - 0.1, 1 - 0.075, 1 - 0.05, 1 - 0.025])


@pytest.mark.parametrize(("batch", "parts"), [(2, 4), (1, 8), (4, 2)])
def test_accumulation_is_one_batch(tokenizer, rows, batch, parts):
    """8 × 1 is 1 × 8, although the answers differ in length."""
    mixed = {"align": [*rows["align"][:16], *rows["harmful"][:16]]}
    ended = []
    for size, steps in ((8, 1), (batch, parts)):
        model = model_of(tokenizer)
        training = Training(
            learning_rate=1e-2,
            optim="sgd",
            max_steps=4,
            max_grad_norm=None,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        fit(model, SFT(), feeds_of(mixed), training)
        ended.append(weights_of(model))
    for one, many in zip(*ended, strict=True):
        assert_close(one, many, rtol=1e-4, atol=1e-6)


def test_every_step_draws_another_dropout_mask_and_again_the_same(tokenizer, rows, tmp_path):
    """The whole data set in each batch and no learning: only the mask can change the loss."""
    model = model_of(tokenizer)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    training = Training(learning_rate=1e-30, optim="sgd", max_steps=3, logging_steps=1)
    losses = []
    for run in ("one", "two"):
        fit(model, SFT(), {"align": Feed(rows["align"][:8], 8, 0, "align")}, training, out=tmp_path / run)
        losses.append([json.loads(line)["align_loss"] for line in (tmp_path / run / "metrics.jsonl").open()])
    assert losses[0] == losses[1]
    assert max(losses[0]) - min(losses[0]) > 1e-4


def test_packing_is_the_same_trajectory(tokenizer, rows):
    ended = []
    for layout in ("padded", "causal", "varlen"):
        model = model_of(tokenizer)
        fit(model, Booster(), feeds_of(rows, layout=layout), Training(learning_rate=1e-2, optim="sgd", max_steps=4))
        ended.append(weights_of(model))
    for padded, causal, packed in zip(*ended, strict=True):
        assert_close(padded, causal, rtol=1e-4, atol=1e-6)
        assert_close(padded, packed, rtol=1e-4, atol=1e-6)


class Killed(BaseException):
    """Stands for kill −9: nothing catches it, nothing is cleaned up."""


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("defense", [SFT(), Booster(), Lisa(align_steps=2, user_steps=3, rho=50), MLAC(inner_steps=2)])
@pytest.mark.parametrize("killed_at", [1, 5, 6])
def test_a_killed_run_resumes_bit_for_bit(tokenizer, rows, tmp_path, defense, schedule, killed_at):
    training = Training(learning_rate=1e-3, max_steps=9, lr_scheduler_type=schedule, logging_steps=1, weight_decay=0.1)

    def run(model, out, die=None):
        def progress(step, steps):
            if step == die:
                raise Killed

        def observe(step):
            return [{"metric": "norm", "value": float(model.model.norm.weight.sum())}]

        return fit(
            model,
            defense,
            feeds_of(rows),
            training,
            out=out,
            observe=observe,
            observe_at={0, 3, 6, 9},
            save_every_s=0,
            progress=progress,
        )

    whole = model_of(tokenizer)
    expected = run(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        run(model_of(tokenizer), tmp_path / "cut", die=killed_at)
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "torn')
    resumed = model_of(tokenizer)
    found = run(resumed, tmp_path / "cut")
    assert found == expected
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    for name in ("observations.jsonl", "metrics.jsonl"):
        logs = [
            [{k: v for k, v in json.loads(line).items() if k != "step_s"} for line in (tmp_path / d / name).open()]
            for d in ("whole", "cut")
        ]
        assert logs[0] == logs[1]
    assert not list((tmp_path / "cut").glob("checkpoint*"))


class Struck(SFT):
    """Ctrl-C in the middle of a step, once or twice; a step that does not come to its end would be another's."""

    at: int
    strikes: int

    def backward(self, model, batches):
        found = super().backward(model, batches)
        if STEPS.pop() == self.at:
            for _ in range(self.strikes):
                os.kill(os.getpid(), signal.SIGINT)
        return found


STEPS: list[int] = []


@pytest.mark.parametrize(("strikes", "kept"), [(1, 4), (2, None)])
def test_ctrl_c_keeps_what_was_done(tokenizer, rows, tmp_path, strikes, kept):
    """It waits for the end of its step, whose checkpoint it leaves; a second one does not wait, and leaves none."""
    training = Training(learning_rate=1e-3, max_steps=9, logging_steps=1)

    def run(model, out, defense):
        def progress(step, steps):
            STEPS[:] = [step]

        def observe(step):
            return [{"metric": "norm", "value": float(model.model.norm.weight.sum())}]

        return fit(
            model, defense, feeds_of(rows), training, out=out, observe=observe, observe_at={0, 4, 9}, progress=progress
        )

    whole, resumed = model_of(tokenizer), model_of(tokenizer)
    expected = run(whole, tmp_path / "whole", SFT())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(model_of(tokenizer), tmp_path / "cut", Struck(at=3, strikes=strikes))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    found = sorted((tmp_path / "cut").glob("checkpoint.*"))
    assert [file.name for file in found] == ([] if kept is None else [f"checkpoint.{kept}"])
    assert run(resumed, tmp_path / "cut", SFT()) == expected
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_ctrl_c_while_it_is_measured_keeps_the_steps_before(tokenizer, rows, tmp_path):
    def observe(step):
        if step == 2 and interrupts:
            interrupts.pop()
            raise KeyboardInterrupt
        return [{"metric": "step", "value": step}]

    training, interrupts = Training(learning_rate=1e-3, max_steps=4), [1]
    with pytest.raises(KeyboardInterrupt):
        fit(model_of(tokenizer), SFT(), feeds_of(rows), training, out=tmp_path, observe=observe, observe_at={0, 2, 4})
    assert [file.name for file in tmp_path.glob("checkpoint.*")] == ["checkpoint.2"]
    found = fit(
        model_of(tokenizer), SFT(), feeds_of(rows), training, out=tmp_path, observe=observe, observe_at={0, 2, 4}
    )
    assert [row["value"] for row in found.observations] == [0, 2, 4]


@pytest.mark.parametrize("optim", ["sgd", "adafactor", "muon"])
def test_every_optimizer_resumes_bit_for_bit(tokenizer, rows, tmp_path, optim):
    training = Training(learning_rate=1e-3, max_steps=7, lr_scheduler_type="cosine", optim=optim, weight_decay=0.1)

    def run(model, out, die=None):
        def progress(step, steps):
            if step == die:
                raise Killed

        fit(model, SFT(), feeds_of(rows), training, out=out, save_every_s=0, progress=progress)

    whole, resumed = model_of(tokenizer), model_of(tokenizer)
    start = weights_of(whole)
    run(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        run(model_of(tokenizer), tmp_path / "cut", die=4)
    run(resumed, tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(whole.parameters(), start, strict=True))


def test_muon_is_for_matrices_and_adamw_for_the_rest():
    """One step: an orthogonal matrix scaled to AdamW's size, and AdamW's own step, rate times sign."""
    matrix, vector = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((4, 4), (4,)))
    optimizer = build_optimizer([matrix, vector], Training(learning_rate=0.1, optim="muon"))
    matrix.grad, vector.grad = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])), torch.tensor([1.0, -2.0, 3.0, -4.0])
    optimizer.step()
    assert_close(vector.detach(), -0.1 * vector.grad.sign())
    scale = 0.1 * 0.2 * 4**0.5  # rate, times 0.2 √max(rows, columns)
    assert_close(matrix.detach(), -scale * torch.eye(4), atol=0.35 * scale, rtol=0)  # Newton–Schulz: about orthogonal
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]
    for weights in ([matrix], [vector]):
        alone = build_optimizer(weights, Training(optim="muon"))
        alone.step()
        assert len(alone.state_dict()["state"]) == 1


def test_an_observer_may_end_a_run(tokenizer, rows, tmp_path):
    seen = []

    def observe(step):
        seen.append(step)
        if step == 4:
            raise StopRun
        return [{"metric": "m", "value": 1.0}]

    model = model_of(tokenizer)
    model.train()
    fitted = fit(
        model,
        SFT(),
        feeds_of(rows),
        Training(max_steps=9),
        out=tmp_path,
        observe=observe,
        observe_at={0, 2, 4, 6},
        save_every_s=0,
    )
    assert (fitted.status, fitted.step, seen) == ("stopped", 4, [0, 2, 4])
    assert [row["step"] for row in fitted.observations] == [0, 2] and model.training
    assert not list(tmp_path.glob("checkpoint*"))
    four = model_of(tokenizer)
    fit(four, SFT(), feeds_of(rows), Training(max_steps=4))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), four.parameters(), strict=True))


def test_resume_does_not_start_over(tokenizer, rows, tmp_path):
    steps = []

    def progress(step, total):
        steps.append(step)
        if len(steps) == 5:
            raise Killed

    options = {"out": tmp_path, "save_every_s": 0, "progress": progress}
    for _ in range(2):
        with contextlib.suppress(Killed):
            fit(model_of(tokenizer), SFT(), feeds_of(rows), Training(max_steps=6), **options)
    assert steps[:5] == [0, 1, 2, 3, 4] and steps[5] >= 3


def test_divergence_is_a_status(tokenizer, rows):
    model = model_of(tokenizer)
    fitted = fit(
        model, SFT(), feeds_of(rows), Training(learning_rate=1e30, optim="sgd", max_steps=20, max_grad_norm=None)
    )
    assert fitted.status == "diverged"
    assert fitted.step < 20


def test_a_role_without_data_is_named():
    with pytest.raises(InputError, match="harmful"):
        fit(Bowls((0.0, 0.0)), Booster(), {"align": BowlFeed()}, Training(max_steps=1))


def test_mode_and_rng_are_left_alone(tokenizer, rows):
    model = model_of(tokenizer).eval()
    before = torch.get_rng_state()
    fit(model, SFT(), feeds_of(rows), Training(max_steps=2))
    assert not model.training
    assert torch.equal(before, torch.get_rng_state())


def test_bf16_autocast_trains(tokenizer, rows):
    model = model_of(tokenizer)
    seen = []
    fit(
        model,
        SFT(),
        feeds_of(rows),
        Training(learning_rate=5e-3, max_steps=30, bf16=True, logging_steps=1),
        observe=lambda step: seen.append(SFT().backward(model, {"align": feeds_of(rows)["align"].batches_at(0)})) or [],
        observe_at={0, 30},
    )
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert seen[1]["align_loss"] < 0.7 * seen[0]["align_loss"]


def test_metrics_reach_a_tracker(tokenizer, rows, tmp_path):
    fit(model_of(tokenizer), SFT(), feeds_of(rows), Training(max_steps=2, report_to=("tensorboard",)), out=tmp_path)
    assert list(tmp_path.rglob("events.*"))


def test_epochs_count_the_rows_of_align():
    assert Training(num_train_epochs=20).steps(5000) == 10000
    assert Training(num_train_epochs=1, per_device_train_batch_size=3).steps(10) == 4
    assert Training(max_steps=7).steps(5000) == 7


def test_an_option_that_would_do_nothing_is_refused():
    with pytest.raises(ValueError, match="constant_with_warmup"):
        Training(warmup_steps=10)


def test_a_default_that_came_later_is_no_part_of_what_is_hashed():
    plain, grouped = Training(), Training(train_sampling_strategy="group_by_length")
    assert (
        "train_sampling_strategy" not in plain.model_dump() and grouped.model_dump().keys() > plain.model_dump().keys()
    )
    for training in (plain, grouped):
        assert Training.model_validate(training.model_dump()) == training
        assert Training.model_validate_json(training.model_dump_json()) == training


class Several:
    """Needs three batches of a role, and remembers what it was given."""

    name, needs = "several", {"align": 1, "adversary": 3}

    def __init__(self):
        self.calls = []

    def backward(self, model, batches):
        self.calls.append(
            {role: [batch["input_ids"][:, -1].tolist() for batch in given] for role, given in batches.items()}
        )
        return SFT().backward(model, {"align": batches["align"]})


@pytest.mark.parametrize("parts", [1, 2])
def test_a_defense_gets_as_many_batches_as_it_needs(tokenizer, parts):
    """Of rows that are all different, each once in an epoch."""
    rows = [Encoded([2, 3, 10 + i], 2) for i in range(24)]
    feeds = {"align": Feed(rows[:8], 4, 0, "align"), "adversary": Feed(rows, 12, 0, "adversary")}
    several = Several()
    training = Training(max_steps=2, per_device_train_batch_size=4 // parts, gradient_accumulation_steps=parts)
    fit(model_of(tokenizer), several, feeds, training)
    assert len(several.calls) == 2 * parts
    assert all(len(call["adversary"]) == 3 and len(call["align"]) == 1 for call in several.calls)
    seen = [token for call in several.calls for batch in call["adversary"] for token in batch]
    assert sorted(seen) == [10 + i for i in range(24)]
