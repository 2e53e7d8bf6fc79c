"""RepNoise against its formula written out token by token, on three architectures."""

from __future__ import annotations

import math

import pytest
import torch
from tests.shapes import small
from torch.testing import assert_close

from inoculate.core.errors import InputError
from inoculate.data.batches import pack, pad
from inoculate.data.templates import Encoded
from inoculate.defenses import SFT, RepNoise
from inoculate.models.noising import apart, distance_to_noise

MLP = {"llama": "mlp", "gpt_neox": "mlp", "gemma": "mlp"}
shapes = pytest.mark.parametrize("kind", MLP)


def grads(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def slow_mmd(xs, ys):
    """Both lists of vectors; kernels and means by loops."""
    every = [*xs, *ys]
    square = [[((a - b) ** 2).sum() for b in every] for a in every]
    width = sum(d.item() for row in square for d in row) / (len(every) * (len(every) - 1))
    kernel = [[sum(torch.exp(-d / (width * 2.0**i)) for i in (-2, -1, 0, 1, 2)) for d in row] for row in square]
    n = len(xs)

    def mean(a, b):
        return sum(kernel[i][j] for i in a for j in b) / (len(a) * len(b))

    left, right = range(n), range(n, 2 * n)
    return mean(left, left) + mean(right, right) - 2 * mean(left, right)


def literal(model, batches, alpha, beta, mlp):
    """The objective as a graph of its own: no masks over tensors, a loop over rows and tokens."""
    (align,), (harmful,), (safe,) = batches["align"], batches["harmful"], batches["safe"]
    logits = model(input_ids=align["input_ids"], attention_mask=align["attention_mask"]).logits
    stability = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), align["labels"][:, 1:].flatten())
    activations, handles = [], []
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] == mlp:
            handles.append(module.register_forward_hook(lambda _, __, out: activations.append(out)))
    layers = model.gpt_neox.layers if hasattr(model, "gpt_neox") else model.model.layers
    states = []
    for layer in layers[:-1]:
        hook = lambda _, __, out: states.append(out[0] if isinstance(out, tuple) else out)  # noqa: E731
        handles.append(layer.register_forward_hook(hook))
    last = model(input_ids=harmful["input_ids"], attention_mask=harmful["attention_mask"]).logits
    for handle in handles:
        handle.remove()
    tokens = []
    for b in range(len(harmful["labels"])):
        for t in range(harmful["labels"].shape[1]):
            same = t < safe["input_ids"].shape[1] and safe["input_ids"][b, t] == harmful["input_ids"][b, t]
            inside = t < safe["attention_mask"].shape[1] and safe["attention_mask"][b, t]
            if harmful["labels"][b, t] != -100 and not (same and inside):
                tokens.append((b, t))
    with torch.random.fork_rng():
        noise = []
        for a in activations:
            xs = torch.stack([a[b, t] for b, t in tokens]).float()
            noise.append(slow_mmd(list(xs), list(torch.randn_like(xs))))
    head = model.get_output_embeddings()
    ascents = []
    for read in [*(lambda b, t, s=s: head(s[b, t]) for s in states), lambda b, t: last[b, t]]:
        losses = [-read(b, t - 1).log_softmax(-1)[harmful["input_ids"][b, t]] for b, t in tokens]
        ascents.append(sum(losses) / len(losses))
    ascent = sum(ascents) / len(ascents)
    loss = stability + beta * sum(noise) / len(noise) - alpha * torch.log(ascent)
    model.zero_grad()
    loss.backward()
    return grads(model), float(ascent), float(sum(noise) / len(noise))


@shapes
def test_the_gradient_is_the_formulas(kind, rows, tokenizer):
    given = {role: [pad(rows[role][:2], 0)] for role in ("align", "harmful", "safe")}
    model = small(kind, len(tokenizer))
    found = RepNoise(alpha=0.3, beta=0.5).backward(model, given)
    ours = grads(model)
    expected, ascent, distance = literal(small(kind, len(tokenizer)), given, 0.3, 0.5, MLP[kind])
    assert found["harmful_loss"] == pytest.approx(ascent, rel=1e-5)
    assert found["noise_distance"] == pytest.approx(distance, rel=1e-4)
    assert ours.keys() == expected.keys()
    for name, grad in ours.items():
        assert_close(grad, expected[name], rtol=1e-3, atol=1e-5, msg=name)


def test_without_its_terms_it_is_sft(tiny, batches):
    RepNoise(alpha=0, beta=0).backward(tiny, batches)
    ours = grads(tiny)
    tiny.zero_grad()
    SFT().backward(tiny, batches)
    for name, grad in grads(tiny).items():
        assert_close(ours[name], grad)


def test_steps_drive_the_harmful_answer_away_and_keep_the_aligned_one(tiny, batches):
    optimizer = torch.optim.Adam(tiny.parameters(), lr=1e-3)
    seen = []
    for _ in range(25):
        seen.append(RepNoise(alpha=1, beta=1).backward(tiny, batches))
        optimizer.step()
        optimizer.zero_grad()
    assert seen[-1]["harmful_loss"] > seen[0]["harmful_loss"] + 0.1
    assert seen[-1]["align_loss"] < seen[0]["align_loss"]


def test_noise_is_at_no_distance_and_anything_else_is():
    torch.manual_seed(0)
    assert 0 <= float(distance_to_noise(torch.randn(300, 8))) < 0.05  # the biased estimate: about 5 kernels · 2 / 300
    assert float(distance_to_noise(torch.randn(300, 8) + 2)) > 0.3
    assert float(distance_to_noise(torch.zeros(300, 8))) > 0.3


def test_descent_on_the_distance_makes_noise():
    torch.manual_seed(0)
    x = (3 + 0.1 * torch.randn(200, 4)).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        distance_to_noise(x).backward()
        optimizer.step()
    assert x.mean(0).abs().max() < 0.3 and (x.std(0) - 1).abs().max() < 0.3


HARMFUL = [Encoded((5, 6, 7, 8, 9), 2), Encoded((5, 5, 3, 4), 2)]
SAFE = [Encoded((5, 6, 7, 1), 2), Encoded((5, 5, 2, 4, 1, 1), 2)]
KEPT = [[-100, -100, -100, 8, 9], [-100, -100, 3, -100]]


def test_tokens_that_both_answers_share_do_not_count():
    found = apart(pad(HARMFUL, 0), pad(SAFE, 0)).tolist()
    assert found == [KEPT[0], [*KEPT[1], -100]]
    assert apart(pack(HARMFUL), pack(SAFE)).tolist() == [[*KEPT[0], *KEPT[1]]]
    assert apart(pad(HARMFUL, 0), pack(SAFE)).tolist() == found


@pytest.mark.parametrize(
    ("safe", "found"),
    [
        (SAFE[:1], "2 harmful rows, 1 safe ones"),
        (SAFE[::-1], "row 0 answers another prompt"),
        (HARMFUL, "every answer is its own counterpart"),
    ],
)
def test_answers_that_are_not_paired_are_refused(safe, found):
    with pytest.raises(InputError, match=r"answers that are not paired") as caught:
        apart(pad(HARMFUL, 0), pad(safe, 0))
    assert found in str(caught.value)


def test_presets():
    assert RepNoise() == RepNoise(preset="paper") and (RepNoise().alpha, RepNoise().beta) == (1, 0.001)
    assert RepNoise(preset="booster-authors").alpha == 0.1
    assert math.isclose(RepNoise(preset="booster-authors").beta, 0.001)
