"""MLAC's meta-gradient against finite differences, and what it must equal at its edges."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertModel

from inoculate.core.errors import InputError
from inoculate.defenses import MLAC, AdversarialTraining
from inoculate.models.adversary import HEAD, RATE, Harm
from inoculate.models.classifier import Classifier, EncoderBody, MlpBody
from inoculate.models.inner_loop import Attacker, InnerStep

K = 3


def model(seed=0):
    torch.manual_seed(seed)
    return Classifier(MlpBody(6, 10, 3, 5), classes=2).double()


def batch(seed, rows=24):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=rng, dtype=torch.float64)
    return {"x": x, "labels": (x[:, 0] * x[:, 1] + 0.3 * x[:, 2] > 0).long()}


def batches(k=K):
    return {"align": [batch(1)], "harmful": [batch(2)], "adversary": [batch(10 + i, 16) for i in range(k)]}


def mlac(**fields):
    return MLAC(**({"inner_steps": K, "inner_learning_rate": 5e-3, "inner_learning_rate_mode": "fixed"} | fields))


def grad_of(defense, net, given, course=None):
    net.zero_grad()
    torch.manual_seed(5)
    told = (course or defense).backward(net, given)
    return told, torch.cat([weight.grad.flatten() for weight in net.parameters()])


def shift(net, along, by):
    with torch.no_grad():
        start = 0
        for weight in net.parameters():
            weight += by * along[start : start + weight.numel()].view_as(weight)
            start += weight.numel()


INNER = {
    "sgd": {"inner_optimizer": "sgd", "inner_learning_rate": 0.1},
    "adam": {"inner_optimizer": "adam", "inner_epsilon": 1e-3},
    "sgd, uncalibrated": {"inner_optimizer": "sgd", "inner_learning_rate": 0.1, "calibrated": False},
    "sgd, fast head": {
        "inner_optimizer": "sgd", "inner_learning_rate": 0.1, "inner_head_factor": 3.0, "calibrated": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("fields", INNER.values(), ids=INNER)
def test_meta_gradient_equals_finite_differences(fields, recompute):
    """λ is large, so that the harmful term is most of what is compared."""
    defense, net, given = mlac(lam=20.0, recompute=recompute, **fields), model(), batches()
    _, grad = grad_of(defense, net, given)

    def value():
        told, _ = grad_of(defense, net, given)
        return told["align_loss"] - defense.lam * told["harmful_loss"]

    for seed in range(3):
        along = torch.randn(len(grad), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        h = 1e-6
        shift(net, along, h)
        above = value()
        shift(net, along, -2 * h)
        below = value()
        shift(net, along, h)
        slope = float(grad @ along)
        assert (above - below) / (2 * h) == pytest.approx(slope, rel=1e-4, abs=1e-4 * float(grad.norm()))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_adversary_s_gradient_equals_finite_differences(optimizer):
    """Over its head, and over its inner learning rate."""
    rate = 0.1 if optimizer == "sgd" else 5e-3
    defense = mlac(inner_optimizer=optimizer, inner_learning_rate=rate, inner_epsilon=1e-3, calibrated=False)
    net, given, course = model(), batches(), None
    course = defense.start(net, 1)
    course.adversary.learned = (HEAD, RATE)
    grad_of(defense, net, given, course)
    found = {name: grad.clone() for name, grad in course.adversary._pending.items()}
    held = {name: tensor.clone() for name, tensor in course.adversary.held.items()}
    along = {
        HEAD: torch.randn(held[HEAD].shape, generator=torch.Generator().manual_seed(1)).double(),
        RATE: torch.ones(()),
    }
    for name in (HEAD, RATE):
        values = []
        for by in (1e-6, -1e-6):
            moved = held[name].double() + by * along[name]
            course.adversary.held = held | {name: moved}
            values.append(grad_of(defense, net, given, course)[0]["harmful_loss"])
        slope = float((found[name] * along[name]).sum())
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("fields", INNER.values(), ids=INNER)
@pytest.mark.parametrize("order", [1, 2])
def test_recomputation_changes_nothing(fields, order):
    given, found = batches(), []
    for recompute in (False, True):
        net = model()
        course = mlac(recompute=recompute, order=order, **fields).start(net, 1)
        course.adversary.learned = (HEAD, RATE)
        told, grad = grad_of(None, net, given, course)
        found.append((told, grad, course.adversary._pending))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    assert_close(found[0][1], found[1][1], rtol=1e-9, atol=1e-12)
    for name in (HEAD, RATE):
        assert_close(found[0][2][name], found[1][2][name], rtol=1e-8, atol=1e-12)


def test_second_order_is_not_first_order():
    net, given = model(), batches()
    grads = [
        grad_of(mlac(inner_optimizer="sgd", inner_learning_rate=0.3, order=order), net, given)[1] for order in (1, 2)
    ]
    assert (grads[0] - grads[1]).norm() > 0.01 * grads[1].norm()


@pytest.mark.parametrize("fields", [{}, {"calibrated": True}, {"head": "fresh"}, {"calibrated": True, "cap": 0.5}])
def test_no_inner_steps_are_adversarial_training(fields):
    given, net = batches(0), model()
    plain = AdversarialTraining(lam=2.0, **fields)
    meta = MLAC(inner_steps=0, lam=2.0, inner_learning_rate_mode="fixed", **({"calibrated": False} | fields))
    courses = [plain.start(net, 5), meta.start(net, 5)]
    for step in range(5):
        found = []
        for course in courses:
            course.before_step(step)
            net.zero_grad()
            torch.manual_seed(step)
            told = course.backward(net, given)
            found.append((told["align_loss"], told["harmful_loss"], [w.grad.clone() for w in net.parameters()]))
        assert found[0][:2] == found[1][:2]
        assert all(torch.equal(a, b) for a, b in zip(found[0][2], found[1][2], strict=True))
    assert MLAC(inner_steps=0).needs == AdversarialTraining.needs


def test_the_model_ascends_and_the_adversary_descends():
    """On L − λ H with λ large, a step along −grad raises H; the head's own steps lower it."""
    net, given = model(), batches()
    defense = mlac(lam=100.0, inner_optimizer="sgd", inner_learning_rate=0.05, calibrated=False)
    before, grad = grad_of(defense, net, given)
    shift(net, grad, -1e-4)
    assert grad_of(defense, net, given)[0]["harmful_loss"] > before["harmful_loss"]
    course = mlac(adversary_learning_rate=1e-2, calibrated=False).start(net, 20)
    found = []
    for step in range(20):
        course.before_step(step)
        found.append(course.backward(net, given)["harmful_loss"])
    assert found[-1] < found[0]


def test_flipped_labels_change_nothing_under_calibration():
    """An adversary whose head answers with flipped labels is as good as one that does not."""
    net, given = model(), batches(0)
    course = MLAC(inner_steps=0).start(net, 1)
    first = grad_of(None, net, given, course)
    course.adversary.held[HEAD] = -course.adversary.held[HEAD]
    second = grad_of(None, net, given, course)
    assert first[0]["harmful_loss"] == pytest.approx(second[0]["harmful_loss"], abs=1e-6)
    assert_close(first[1], second[1], rtol=1e-3, atol=1e-5)


def test_calibrated_loss_never_exceeds_log_c():
    net, given = model(), batches()
    for lam in (0.0, 1e3):
        for _ in range(10):
            told, grad = grad_of(mlac(lam=lam), net, given)
            assert told["harmful_loss_first"] <= math.log(2) + 1e-6
            assert told["harmful_loss_last"] <= math.log(2) + 1e-6
            shift(net, grad, -1e-3)


def test_beyond_the_cap_there_is_no_harmful_gradient():
    net, given = model(), batches()
    capped = mlac(lam=5.0, calibrated=False, cap=1e-6)
    assert_close(grad_of(capped, net, given)[1], grad_of(mlac(lam=0.0), net, given)[1])


@pytest.mark.parametrize("defense", [MLAC, AdversarialTraining])
def test_calibration_reaches_as_far_as_its_box(defense):
    """In a box of next to nothing every answer is as good as chance."""
    net, given = model(), batches()
    options = {"calibrated": True} | ({"inner_steps": 0} if defense is MLAC else {})

    def harm(**fields):
        return grad_of(defense(**options, **fields), net, given)[0]["harmful_loss"]

    assert harm(box=1e-9) == pytest.approx(math.log(2), abs=1e-6)
    assert harm(box=1.0) < math.log(2) - 1e-3


def test_learned_inner_rate_stays_in_its_published_bounds():
    net, given = model(), batches()
    course = mlac(inner_learning_rate_mode="learned", adversary_learning_rate=1.0).start(net, 9)
    for step in range(4):
        course.before_step(step)
        rate = course.backward(net, given)["inner_learning_rate"]
        assert 1e-6 * 0.999 <= rate <= 1e-2 * 1.001
    assert rate in (pytest.approx(1e-6), pytest.approx(1e-2))


def test_drawn_rates_lie_within_a_factor_of_three_and_differ():
    net, given, found = model(), batches(), set()
    course = mlac(inner_learning_rate_mode="drawn", inner_learning_rate=1e-3).start(net, 9)
    for step in range(20):
        torch.manual_seed(step)  # as `fit` gives each step its own
        rate = course.backward(net, given)["inner_learning_rate"]
        assert 1e-3 / 3 <= rate <= 3e-3
        found.add(rate)
    assert len(found) == 20


def test_inner_batches_are_drawn_in_the_sizes_asked_for():
    net = model()
    course = mlac(inner_batch_sizes=(5, 9)).start(net, 1)
    sizes = {len(b["labels"]) for _ in range(10) for b in course._sized(batches()["adversary"])}
    assert sizes == {5, 9}


def test_a_run_goes_on_from_what_it_saved():
    given = batches()

    def run(cut):
        net = model()
        course = mlac(inner_learning_rate_mode="learned", adversary_learning_rate=1e-2).start(net, 6)
        for step in range(6):
            if step == cut:
                saved = {name: tensor.clone() for name, tensor in course.tensors().items()}
                course = mlac(inner_learning_rate_mode="learned", adversary_learning_rate=1e-2).start(net, 6)
                course.restore(saved)
            course.before_step(step)
            net.zero_grad()
            torch.manual_seed(step)
            course.backward(net, given)
            for weight in net.parameters():
                weight.data -= 0.01 * weight.grad
        return torch.cat([weight.detach().flatten() for weight in net.parameters()])

    assert torch.equal(run(None), run(3))


def test_a_language_model_s_harm_stops_at_log_v(tiny, batches):
    """An untrained model stands at log V: beyond the cap there is nothing to gain."""
    given = {"align": batches["align"], "harmful": batches["harmful"], "adversary": batches["adversary"]}
    defense = MLAC(inner_steps=1, lam=3.0, cap=1.0)
    alone = MLAC(inner_steps=1, lam=0.0)
    defense.backward(tiny, given)
    capped = [weight.grad.clone() for weight in tiny.parameters()]
    tiny.zero_grad()
    alone.backward(tiny, given)
    for a, weight in zip(capped, tiny.parameters(), strict=True):
        assert_close(a, weight.grad)
    told = MLAC(inner_steps=1).backward(tiny, given)
    assert told["harmful_loss"] <= math.log(tiny.config.vocab_size) + 1e-6


def test_errors(tiny):
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        MLAC(inner_steps=-1)
    with pytest.raises(ValueError, match="must start there"):
        MLAC(inner_learning_rate=0.1)
    with pytest.raises(InputError, match="inner_batch_sizes"):
        MLAC(inner_batch_sizes=(4,)).start(tiny, 1)


def test_gradient_checkpointing_is_refused(tiny, batches):
    """A layer made again after the inner step would be made with other weights, and nothing would say so."""
    tiny.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(InputError, match="cannot be differentiated through gradient checkpointing") as caught:
        MLAC(inner_steps=1).start(tiny, 1)
    assert "recompute: true" in str(caught.value)
    MLAC(inner_steps=0).start(tiny, 1)
    tiny.gradient_checkpointing_disable()
    MLAC(inner_steps=1).start(tiny, 1)


def test_attention_without_a_second_derivative_is_named(tiny, batches):
    tiny.config._attn_implementation = "flex_attention"
    with pytest.raises(InputError, match=r"no second derivative.*flex_attention.*order: 1"):
        MLAC(inner_steps=1).backward(tiny, {**batches, "adversary": batches["adversary"]})


def inner_step(net, **fields):
    harm = Harm(net, calibrated=False)
    torch.manual_seed(3)
    head = harm.fresh_head()
    options = {"head_factor": 1.0, "max_norm": 100.0, "epsilon": 1e-8, "second_order": True} | fields
    step = InnerStep(harm, head.shape, options.pop("optimizer"), **options)
    start = torch.cat([harm.start(), head.flatten()])
    return step, Attacker(start, torch.zeros_like(start), torch.zeros_like(start)), head


@pytest.mark.parametrize(("optimizer", "theirs"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_inner_steps_are_those_of_torch(optimizer, theirs):
    """The head at three times the body's rate."""
    step, state, head = inner_step(model(), optimizer=optimizer, head_factor=3.0)
    other, w = model(), torch.nn.Parameter(head.clone())
    body = [weight for name, weight in other.named_parameters() if name.startswith("body.")]
    rival = theirs([{"params": body, "lr": 1e-2}, {"params": [w], "lr": 3e-2}])
    for number in (1, 2, 3):
        given = batch(20 + number)
        state = step(state, given, number, torch.tensor(1e-2))
        rival.zero_grad()
        torch.nn.functional.cross_entropy(other(x=given["x"], head=w), given["labels"]).backward()
        rival.step()
    ours, ours_w = step.apart(state.weights_Q)
    for mine, weight in zip(step.harm.split(ours), step.harm.weights, strict=True):
        assert mine.shape == weight.shape
    wanted = torch.cat([weight.detach().flatten() for weight in other.parameters()])
    near = {"rtol": 0, "atol": 1e-9 if optimizer == "sgd" else 5e-5}  # Adam: √(v + ε²) for √v + ε, of steps of 1e-2
    assert_close(ours.detach(), wanted, **near)
    assert_close(ours_w.detach(), w.detach(), **near)


def test_the_norm_that_clips_is_held_fixed():
    """∂(Σ w′)/∂w = 1 − η c H 1, with c = bound / ‖g‖ as a number."""
    step, state, _ = inner_step(model(), optimizer="sgd", max_norm=0.01)
    given, start = batch(30), state.weights_Q.clone().requires_grad_()
    loss = step.harm.loss(*step.apart(start), given)
    (g,) = torch.autograd.grad(loss, start, create_graph=True)
    (curved,) = torch.autograd.grad(g.sum(), start)
    after = step(state._replace(weights_Q=start), given, 1, torch.tensor(0.5))
    (slope,) = torch.autograd.grad(after.weights_Q.sum(), start)
    assert g.norm() > 0.01
    assert_close(slope, 1 - 0.5 * 0.01 / g.norm().detach() * curved, rtol=1e-9, atol=1e-12)


def test_inner_steps_make_the_adversary_better():
    """On the rows that it trains on."""
    defense = mlac(lam=0.0, inner_steps=8, inner_optimizer="sgd", inner_learning_rate=0.3, calibrated=False)
    told = defense.backward(model(), {"align": [batch(1)], "harmful": [batch(2)], "adversary": [batch(2)] * 8})
    assert told["harmful_loss_last"] < told["harmful_loss_first"] - 0.01


@pytest.mark.parametrize("padding", [0, 3], ids=["BERT's padding", "another"])
@pytest.mark.parametrize("recompute", [False, True])
def test_word_vectors_out_of_reach_change_nothing(monkeypatch, padding, recompute):
    """In float64 the same gradient as with all of them, on a network whose embeddings decide; zero where none looks."""
    net, given = texts_model(padding), texts_batches(padding)
    defense = mlac(lam=5.0, inner_epsilon=1e-3, recompute=recompute)
    _, ours = grad_of(defense, net, given)
    monkeypatch.setattr(Harm, "reach", lambda self, batches: None)
    _, theirs = grad_of(defense, net, given)
    assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    net.zero_grad()
    net.body.encoder.get_input_embeddings().requires_grad_(False)
    torch.manual_seed(5)
    defense.backward(net, given)
    assert net.body.encoder.get_input_embeddings().weight.grad is None


def test_only_words_of_the_batches_are_weights_of_an_attacker():
    net, given = texts_model(0), texts_batches(0)
    harm = Harm(net, calibrated=False)
    everything = len(harm.start())
    harm.reach([*given["harmful"], *given["adversary"]])
    seen = torch.cat([b["input_ids"].flatten() for b in (*given["harmful"], *given["adversary"])]).unique()
    width = net.body.feature_size
    assert everything - len(harm.start()) == (WORDS - len(seen)) * width
    table = harm.split(harm.start())[harm.names.index("body.encoder.embeddings.word_embeddings.weight")]
    assert table.shape == (WORDS, width)
    assert table.abs().sum(1).nonzero().flatten().tolist() == [i for i in seen.tolist() if i]


WORDS = 60


def texts_model(padding):
    config = BertConfig(
        vocab_size=WORDS, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8, pad_token_id=padding, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    net = Classifier(EncoderBody(BertModel(config, add_pooling_layer=False)), classes=2).double()
    with torch.no_grad():
        net.body.encoder.get_input_embeddings().weight.mul_(20)
        net.body.encoder.get_input_embeddings().weight[padding] = 0
    return net


def texts_batches(padding):
    def made(seed):
        rng = torch.Generator().manual_seed(seed)
        ids = torch.randint(20, 40, (12, 6), generator=rng)
        mask = torch.ones_like(ids)
        ids[:4, 4:], mask[:4, 4:] = padding, 0
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(2, (12,), generator=rng)}

    return {"align": [made(1)], "harmful": [made(2)], "adversary": [made(10 + i) for i in range(K)]}
