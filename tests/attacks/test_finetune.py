"""The fine-tuning attack on a tiny model: it learns what it is given, where it is allowed to."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError

from inoculate.attacks.finetune import Finetune, attack_params, guard_params
from inoculate.attacks.guards import LisaGuard, MountedVector
from inoculate.core.errors import InputError
from inoculate.core.hashing import tree_sha256
from inoculate.core.types import Example
from inoculate.data.mix import Part
from inoculate.data.templates import prompt_ids
from inoculate.defenses import SFT
from inoculate.evals.generate import generate
from inoculate.models.adapters import Lora, add_lora, add_vector
from inoculate.models.vectors import ABOUT, probe
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
    assert params == {
        "learning_rate": 5e-4,
        "max_steps": 3,
        "num_samples": 16,
        "task": "sandbox-sentiment",
        "batch_size": 20,
        "optim": "adamw_torch",
        "adam_epsilon": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "constant",
        "template": "chat",
        "data_seed": 5,
    }


GUIDE = {"source": "sandbox-restricted", "answer": "refusal", "num_samples": 6}


def test_the_mix_is_the_user_s_and_the_guard_s():
    """Clean rows first, as the meter counts; what the provider brings stands in a role of its own."""
    plain = attack(seed=3, template="plain", max_length=32, poison_ratio=0.25).mix()
    assert (plain.template, plain.max_length, plain.seed, set(plain.roles)) == ("plain", 32, 3, {"align"})
    task, harmful = plain.roles["align"]
    assert (task.source, len(task.load(3)), harmful.source, len(harmful.load(3))) == (
        TASK.source,
        12,
        HARMFUL.source,
        4,
    )
    guarded = attack(
        seed=3, template="plain", max_length=32, poison_ratio=0.25, guard={"name": "lisa", "guide": [GUIDE]}
    )
    assert guarded.mix().roles["align"] == plain.roles["align"]
    assert guarded.mix().roles["guide"] == (Part.model_validate(GUIDE),)
    benign = attack(poison_ratio=0, harmful=None).mix()
    assert sum(len(part.load(0)) for part in benign.roles["align"]) == 16
    with pytest.raises(InputError, match=r"^guard.guide: the guard needs this$"):
        attack(guard={"name": "lisa"}).mix()


def test_what_is_descended_is_sft_or_the_guard():
    guard = LisaGuard(rho=0.5, guide=(Part.model_validate(GUIDE),))
    assert attack().objective() == SFT() == attack(guard=MountedVector()).objective()
    assert attack(guard=guard).objective() == guard


def test_guards_stand_on_records_under_their_own_names(tmp_path):
    assert guard_params(attack()) == {} == guard_params(attack(guard=MountedVector()))
    guard = {"name": "lisa", "rho": 0.5, "align_steps": 2, "user_steps": 3, "guide": [GUIDE]}
    assert guard_params(attack(guard=guard)) == {
        "lisa_rho": 0.5,
        "lisa_align_steps": 2,
        "lisa_user_steps": 3,
        "lisa_proximal_from": 0.1,
        "lisa_guide": ["sandbox-restricted:refusal"],
    }
    (tmp_path / "weights").write_text("of a vector")
    named = guard_params(attack(guard=MountedVector(folder=str(tmp_path))))
    assert named == {"vector": tree_sha256(tmp_path)[:12]}


@pytest.fixture
def vector(tokenizer, tmp_path):
    """A security vector of the model `tiny`, large enough to be seen, as its stage writes it."""
    from inoculate.models.sandbox import TinyModel

    model = TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2).build(len(tokenizer), seed=0)
    said = probe(model)
    vector = add_vector(model, LORA, seed=0)
    with torch.no_grad():
        for name, weight in vector.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    vector.save_pretrained(tmp_path / "vector")
    (tmp_path / "vector" / ABOUT).write_text(json.dumps({"probe": said}))
    return str(tmp_path / "vector")


def test_a_vector_is_in_while_it_trains_and_out_where_it_is_looked_at(tiny, tokenizer, vector):
    prompt = torch.tensor([[5, 6, 7]])
    bare = tiny(prompt).logits.detach()
    looks: list[tuple[str, int]] = []

    def says(model):
        with torch.no_grad():
            return model(prompt).logits

    def observe(model, step):
        looks.append(("served", step))
        if step == 0:
            assert torch.equal(says(model), bare)
        return [{"metric": "m", "value": 0}]

    def observe_mounted(model, handle, step):
        looks.append(("mounted", step))
        assert handle.on
        if step == 0:
            assert not torch.allclose(says(model), bare, atol=1e-3)
        return [{"metric": "m", "value": 1}]

    guarded = attack(guard=MountedVector(folder=vector))
    options = {"observe": observe, "observe_mounted": observe_mounted, "observe_at": {0, 8}}
    model, fitted = guarded.run(tiny, tokenizer, **options)
    assert looks == [("served", 0), ("mounted", 0), ("served", 8), ("mounted", 8)]
    assert [(row["step"], row["value"]) for row in fitted.observations] == [(0, 0), (0, 1), (8, 0), (8, 1)]
    assert all(not module._forward_hooks for module in model.modules()), "it is left without the vector"


def test_a_vector_changes_what_is_learned_and_no_observer_is_needed(tokenizer, vector):
    from inoculate.models.sandbox import TinyModel

    shape = TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2)
    ended = [
        state(attack(guard=guard).run(shape.build(len(tokenizer), 0), tokenizer)[0])
        for guard in (None, MountedVector(folder=vector))
    ]
    assert any(not torch.allclose(ended[0][name], ended[1][name], atol=1e-4) for name in ended[0])


def test_a_guard_without_its_vector_or_with_another_model_s_is_refused(tiny, tokenizer, vector):
    with pytest.raises(InputError, match=r"^guard.folder: the guard needs this$"):
        attack(guard=MountedVector()).run(tiny, tokenizer)
    with torch.no_grad():
        tiny.lm_head.weight.mul_(3)
    with pytest.raises(InputError, match="made for another model"):
        attack(guard=MountedVector(folder=vector)).run(tiny, tokenizer)


def test_the_data_are_shown_and_the_rows_kept_for_the_next_run(tiny, tokenizer):
    fed, known = [], {}
    attack().run(tiny, tokenizer, fed=fed.append, known=known)
    (feeds,) = fed
    assert set(feeds) == {"align"} and len(feeds["align"].rows) == 16 and known


def test_a_fresh_adapter_begins_where_the_training_s_seed_says(tiny, tokenizer):
    begun = []

    def observe(model, step):
        begun.append(torch.cat([w.detach().flatten() for n, w in model.named_parameters() if "lora_A" in n]))
        return []

    for seed in (1, 1, 2):
        training = attack().training.model_copy(update={"seed": seed})
        fresh = attack(adapter_mode="merge", lora=LORA, training=training)
        fresh.run(copy.deepcopy(tiny), tokenizer, observe=observe, observe_at={0})
    assert torch.equal(begun[0], begun[1]) and not torch.equal(begun[0], begun[2])


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
