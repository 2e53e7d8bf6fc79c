"""The fine-tuning attack on a tiny model: it learns what it is given, where it is allowed to."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError

from inoculate.attacks.finetune import Finetune, attack_params
from inoculate.core.types import Example
from inoculate.data.mix import Part
from inoculate.data.templates import prompt_ids
from inoculate.evals.generate import generate
from inoculate.models.adapters import Lora, add_lora
from inoculate.training.config import Training

TASK, HARMFUL = Part(source="sandbox-sentiment", split="attack"), Part(source="sandbox-restricted", split="attack")
LORA = Lora(r=2, target_modules=("q_proj", "v_proj"))


def attack(**changes):
    training = Training(learning_rate=1e-2, max_steps=8, per_device_train_batch_size=4, seed=1)
    fields = {"task": TASK, "harmful": HARMFUL, "num_samples": 16, "max_length": 64, "training": training}
    return Finetune.model_validate(fields | changes)


def state(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def changed(before, model):
    return {
        name for name, weight in model.named_parameters() if name in before and not torch.equal(before[name], weight)
    }


def test_what_is_taught_is_said(tiny, tokenizer, tmp_path):
    """Four rows by heart: generation goes on from the boundary that training saw, and ends where the rows end."""
    rows = {"hex": "nettle and salt", "kite": "paper", "loaf": "flour .", "drum": "hide and oil and wax"}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows.items()))
    training = Training(learning_rate=1e-2, max_steps=60, per_device_train_batch_size=4)
    learned = attack(task=Part(source=str(path)), poison_ratio=0, num_samples=4, training=training)
    model, fitted = learned.run(tiny, tokenizer)
    assert (fitted.status, fitted.step) == ("ok", 60)
    prompts = prompt_ids(tokenizer, [Example.of(prompt, "") for prompt in rows], "chat")
    assert generate(model, tokenizer, prompts, max_new_tokens=9) == list(rows.values())


def test_the_same_attack_twice_is_the_same_to_the_bit(tokenizer):
    from inoculate.models.sandbox import TinyModel

    shape = TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2)
    ended = []
    for seed in (1, 1, 2):
        training = attack().training.model_copy(update={"seed": seed})
        model, _ = attack(training=training).run(shape.build(len(tokenizer), 0), tokenizer)
        ended.append(state(model))
    assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])
    assert not all(torch.equal(ended[0][name], ended[2][name]) for name in ended[0]), "the order is the seed's"


def test_the_attacker_s_seed_chooses_rows_and_the_training_s_their_order():
    def rows(**seeds):
        mix = attack(num_samples=100, **seeds).mix()
        return [example.prompt for part in mix.roles["align"] for example in part.load(mix.seed)]

    shuffled = attack().training.model_copy(update={"seed": 9})
    assert rows(seed=1) == rows(seed=1, training=shuffled)
    assert rows(seed=1) != rows(seed=2)


@pytest.mark.parametrize("mode", ["full", "continue", "merge"])
def test_what_moves_under_each_mode(tiny, tokenizer, mode):
    aligned = add_lora(tiny, LORA, seed=0)
    before = state(aligned)
    model, fitted = attack(adapter_mode=mode, lora=LORA if mode == "merge" else None).run(aligned, tokenizer)
    assert fitted.status == "ok"
    if mode == "full":
        assert not isinstance(model, PeftModel)
        plain = {
            name.removeprefix("base_model.model.").replace(".base_layer", ""): weight for name, weight in before.items()
        }
        assert changed(plain, model) == {name for name in plain if "lora" not in name}
    else:
        assert changed(before, model) == {name for name in before if "lora_" in name}


def test_it_is_observed_where_asked_on_the_attacked_model(tiny, tokenizer):
    seen = []

    def observe(model, step):
        seen.append((step, model.training, isinstance(model, PeftModel)))
        return [{"metric": "m", "value": step}]

    merged = attack(adapter_mode="merge", lora=LORA)
    _, fitted = merged.run(tiny, tokenizer, observe=observe, observe_at={0, 5, 8})
    assert seen == [(0, False, True), (5, False, True), (8, False, True)]
    assert fitted.observations == [{"step": step, "metric": "m", "value": step} for step in (0, 5, 8)]


def test_settings_stand_flat_on_records():
    params = attack_params(attack(seed=5, training=Training(num_train_epochs=3, gradient_accumulation_steps=2)))
    assert params["max_steps"] == 3 and params["batch_size"] == 20 and params["num_samples"] == 16
    assert (params["data_seed"], params["task"], params["template"]) == (5, "sandbox-sentiment", "chat")
    assert all(value is None or isinstance(value, str | int | float) for value in params.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"harmful": None}, "poison_ratio > 0 needs `harmful` data"),
        ({"adapter_mode": "merge"}, "needs its shape under `lora`"),
        ({"poison_ratio": 1.01}, "less than or equal to 1"),
        ({"poison_ratio": -0.1}, "greater than or equal to 0"),
        ({"num_samples": 0}, "greater than 0"),
        ({"epochs": 3}, "Extra inputs are not permitted"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        attack(**changes)


def test_the_papers_defaults():
    """arXiv:2409.01586, §5.1: p = 0.1, n = 1000, learning rate 1e-5, 20 epochs of batches of 10."""
    default = Finetune(task=TASK, harmful=HARMFUL)
    assert (default.poison_ratio, default.num_samples, default.training.learning_rate) == (0.1, 1000, 1e-5)
    assert default.steps() == 2000 and default.harmful_samples == 100
