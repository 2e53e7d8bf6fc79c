"""The batched engine does, trial by trial, what the plain loop does."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from inoculate.attacks import engine
from inoculate.attacks.engine import Examples, Trial, train
from inoculate.attacks.parallel import Processes
from inoculate.attacks.sequential import train_sequentially
from inoculate.attacks.vocabulary import reachable
from inoculate.core.errors import InputError, StageError
from inoculate.models.classifier import EncoderBody, MlpBody


def vectors(rows: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Examples:
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return Examples({"x": x}, (x[:, 0] > 0).long() + (x[:, 1] > 1).long())


def texts(rows: int, seed: int = 0, words: int = 20) -> Examples:
    ids = torch.randint(0, words, (rows, 5), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    ids[::3, 3:] = mask[::3, 3:] = 0
    return Examples({"input_ids": ids, "attention_mask": mask}, ids[:, 0] % 3)


def mlp(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(1)
    return MlpBody(6, 8, 2, 5).to(dtype)


def encoder(words: int = 20) -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    config = BertConfig(vocab_size=words, max_position_embeddings=8, attn_implementation="eager", **shape)
    return EncoderBody(BertModel(config, add_pooling_layer=False)).double()


def trial(number: int = 0, **changes) -> Trial:
    fields = {"learning_rate": 1e-3 * (1 + number), "steps": 20, "batch_size": 4, "frozen": False, "seed": number}
    return Trial(**(fields | {"rows": tuple(range(number, number + 12))} | changes))


MIXED = [
    trial(0),
    trial(1, steps=7, batch_size=30),
    trial(2, frozen=True),
    trial(3, frozen=True, steps=13, batch_size=5),
    trial(4, optimizer="sgd", learning_rate=0.3),
    trial(5, optimizer="sgd", learning_rate=0.1, frozen=True, batch_size=7),
    trial(6, steps=10, batch_size=7),
]


def run(carry_out, body, data, trials, **options):
    settings = {"classes": 3, "eval_steps": 5, "keep": True} | options
    return carry_out(body, data(30), data(40, 1), data(50, 2), trials, **settings)


def assert_same(one, other, tolerance=1e-9):
    assert (one.steps, one.validation, one.heldout) == (other.steps, other.validation, other.heldout)
    for name in one.weights:
        torch.testing.assert_close(one.weights[name], other.weights[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("make", "data"), [(mlp, vectors), (encoder, texts)])
@pytest.mark.parametrize("padded", [0, 2**15])
def test_every_trial_ends_with_the_weights_of_the_plain_loop(make, data, padded, monkeypatch):
    """Adam and SGD, frozen and not, rates, batches and lengths of their own, over 20 steps."""
    monkeypatch.setattr(engine, "PADDED_WEIGHTS", padded)
    body = make()
    before = {name: weight.clone() for name, weight in body.state_dict().items()}
    batched = run(train, body, data, MIXED)
    for one, other, spec in zip(batched, run(train_sequentially, body, data, MIXED), MIXED, strict=True):
        assert_same(
            replace(one, weights={name: one.weights[name] for name in other.weights if name in one.weights}), other
        )
        assert set(one.weights) == ({"head"} if spec.frozen else {"head", *before})
        moved = (one.weights["head"] - spec.head(3, body.feature_size)).abs().max()
        assert moved > 1e-3
    assert all(torch.equal(weight, before[name]) for name, weight in body.state_dict().items())


def test_vectors_of_words_that_no_sample_has_are_not_trained():
    """They are not even stacked; weights and accuracies, also on texts full of them, are the plain loop's."""
    body, data = encoder(300), partial(texts, words=300)
    ids = data(30).inputs["input_ids"]
    seen = {int(word) for spec in MIXED for row in spec.rows for word in ids[row]}
    used = torch.tensor(sorted({row for spec in MIXED for row in spec.rows}))
    table = reachable(body, ids[used]).encoder.get_input_embeddings()
    assert len(table.weight) == len(seen - {0}) < 120  # 0 is padding, which torch does not train
    torch.testing.assert_close(table(ids), body.encoder.get_input_embeddings()(ids), rtol=0, atol=0)
    specs = [spec for spec in MIXED if not spec.frozen]
    for one, other in zip(run(train, body, data, specs), run(train_sequentially, body, data, specs), strict=True):
        assert_same(one, other)


def test_curves_hold_every_evaluation_and_the_last_step():
    curves = run(train, mlp(), vectors, [trial(0), trial(1, steps=7), trial(2, steps=3, frozen=True)])
    assert [curve.steps for curve in curves] == [(5, 10, 15, 20), (5, 7), (3,)]
    assert all(len(curve.heldout) == len(curve.validation) == len(curve.steps) for curve in curves)
    assert run(train, mlp(), vectors, []) == []


def test_best_is_the_first_of_the_best():
    (curve,) = run(train, mlp(), vectors, [trial(0)])
    assert replace(curve, validation=(0.5, 0.7, 0.6, 0.7)).best == 1
    assert replace(curve, steps=(), validation=()).best is None


def test_a_trial_does_not_see_its_company():
    """Alone, in any order, or in small stacks: a trial that leaves early as well as one that stays."""
    together = run(train, mlp(), vectors, MIXED)
    backwards = run(train, mlp(), vectors, MIXED[::-1])[::-1]
    for number, spec in enumerate(MIXED):
        assert_same(together[number], backwards[number], 1e-12)
        assert_same(together[number], *run(train, mlp(), vectors, [spec]), 1e-12)


def test_stacks_are_bounded(monkeypatch):
    sizes = []
    begin = engine.Race.__init__
    monkeypatch.setattr(engine.Race, "__init__", lambda race, job: sizes.append(len(job.trials)) or begin(race, job))
    whole = run(train, mlp(), vectors, MIXED)
    weights = sum(weight.numel() for weight in mlp().parameters()) + 3 * 5
    monkeypatch.setattr(engine, "STACK_BYTES", engine.COPIES * weights * 8 * 2)
    sizes.clear()
    parts = run(train, mlp(), vectors, MIXED)
    assert sizes[-3:] == [2, 1, 1]
    for one, other in zip(whole, parts, strict=True):
        assert_same(one, other, 1e-12)


@pytest.mark.parametrize("carry_out", [train, train_sequentially])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_diverging_trial_is_flagged_and_disturbs_nobody(carry_out, frozen):
    def single(rows, seed=0):
        return vectors(rows, seed, torch.float32)

    wild = trial(1, learning_rate=1e30, frozen=frozen, optimizer="sgd" if frozen else "adam")
    calm = [replace(trial(number), optimizer=wild.optimizer, frozen=frozen) for number in (0, 2)]
    body = mlp(torch.float32)
    found = run(carry_out, body, single, [calm[0], replace(wild, learning_rate=math.inf), wild, calm[1]])
    assert [curve.diverged for curve in found] == [False, True, found[2].diverged, False]
    assert found[1].steps == () and found[1].best is None
    for curve, undisturbed in zip((found[0], found[3]), run(carry_out, body, single, calm), strict=True):
        assert_same(curve, undisturbed, 1e-6)


def test_float32_agrees_in_what_it_reports():
    def single(rows, seed=0):
        return vectors(rows, seed, torch.float32)

    trials = [replace(spec, steps=60, learning_rate=1e-2) for spec in MIXED]
    batched = run(train, mlp(torch.float32), single, trials)
    for one, other in zip(batched, run(train_sequentially, mlp(torch.float32), single, trials), strict=True):
        assert one.steps == other.steps
        assert max(abs(a - b) for a, b in zip(one.validation, other.validation, strict=True)) <= 1 / 40 + 1e-9


def test_batches_are_permutations_one_after_another():
    spec = trial(0, steps=6, batch_size=8)
    stream = spec.batches().reshape(-1)
    assert spec.batches().shape == (6, 8)
    for epoch in stream.reshape(-1, 12):
        assert sorted(epoch) == list(range(12))
    assert not (stream[:12] == stream[12:24]).all()
    assert trial(0, batch_size=99).batches().shape == (20, 12)


def test_a_layer_without_a_batched_form_is_named():
    body = nn.Sequential(nn.Conv1d(1, 1, 1))
    body.feature_size = 3
    with pytest.raises(InputError, match="Conv1d"):
        run(train, body, vectors, [trial(0)])


def test_two_processes_find_what_one_does():
    pool, validation = vectors(40), vectors(30, 1)
    options = {"classes": 3, "eval_steps": 5}
    with Processes(2) as engine:
        both = engine(mlp(), pool, validation, None, MIXED, **options)
        alone = engine(mlp(), pool, validation, None, MIXED[:1], **options)
    one = train(mlp(), pool, validation, None, MIXED, **options)
    assert [(curve.steps, curve.validation) for curve in both] == [(curve.steps, curve.validation) for curve in one]
    assert alone[0].validation == one[0].validation


def test_a_process_that_dies_is_an_error_and_not_a_wait():
    with Processes(2) as engine:
        for process in engine._pool._processes.values():
            process.kill()
        with pytest.raises(StageError, match="died"):
            for _ in range(3):  # the pool may take a call to notice
                engine(mlp(), vectors(40), vectors(30, 1), None, MIXED, classes=3, eval_steps=5)
