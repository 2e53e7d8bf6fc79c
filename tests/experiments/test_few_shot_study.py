"""A few-shot study from recipe to records, on a world of a few hundred rows."""

from __future__ import annotations

import copy

import pytest
import yaml
from safetensors.torch import load_file
from transformers import AutoModel

from inoculate.core.errors import InputError
from inoculate.core.records import read_records
from inoculate.experiments.few_shot import FewShotAttack
from inoculate.experiments.recipe import load_recipe
from inoculate.experiments.runner import in_order
from inoculate.experiments.session import run_recipe
from inoculate.experiments.start import Body, Start
from inoculate.models.bodies import load_body

TRAINING = {"learning_rate": 1e-3, "max_steps": 4, "per_device_train_batch_size": 8, "max_grad_norm": 10}
MLAC = {"name": "mlac", "inner_steps": 2, "inner_optimizer": "sgd", "inner_learning_rate": 0.01}
RECIPE = {
    "name": "small",
    "world": {"name": "products", "train": 200, "attack": 100, "validation": 60, "heldout": 80},
    "body": {"name": "mlp", "hidden_size": 8, "num_layers": 2},
    "pretraining": {"learning_rate": 3e-3, "max_steps": 20, "per_device_train_batch_size": 16},
    "start": {"name": "trained", "defense": MLAC, "training": TRAINING},
    "attack": {"num_samples": 20, "n_trials": 4, "min_steps": 2, "max_steps": 6, "steps_step": 2, "eval_steps": 2,
               "batch_sizes": [8, 64], "reruns": 3, "trials_per_ask": 2},
    "seed": 3,
}  # fmt: skip
TEXTS = {
    "world": {"name": "biographies", "train": 150, "attack": 80, "validation": 40, "heldout": 40},
    "body": {"name": "encoder", "hidden_size": 16, "intermediate_size": 16},
    "pretraining": None,
}


def recipe(folder, **changes):
    raw = copy.deepcopy(RECIPE) | changes
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(raw))
    return load_recipe(str(path))


def run(folder, store, **changes):
    made = recipe(folder, **changes)
    assert run_recipe(made, made.stages(), store, 1, "cpu", lambda text, code: code) == 0
    stages = {stage.kind: stage for stage in in_order(made.stages())}
    return stages, {
        kind: list(read_records(store / stage.folder / "records.jsonl"))
        for kind, stage in stages.items()
        if (store / stage.folder / "records.jsonl").exists()
    }


def made_rows(changes):
    return changes.get("world", RECIPE["world"])["train"]


@pytest.mark.parametrize("changes", [{}, TEXTS], ids=["vectors", "texts"])
def test_every_trial_and_rerun_is_on_record(tmp_path, changes):
    stages, records = run(tmp_path, tmp_path / "store", **changes)
    assert set(stages) == {"body", "start", "few_shot"}
    trials = [r for r in records["few_shot"] if r.trial is not None]
    reruns = [r for r in records["few_shot"] if r.trial is None]
    assert [r.trial for r in trials] == [0, 1, 2, 3]
    assert {r.split for r in trials} == {"validation"}
    assert [(r.attack_seed, r.split) for r in reruns] == [
        (number, split) for number in range(3) for split in ("validation", "heldout")
    ]
    best = max(r.value for r in trials)
    winner = next(r for r in trials if r.value == best)
    chosen = ("learning_rate", "steps", "batch_size", "freeze_body", "optimizer")
    for r in records["few_shot"]:
        assert (r.metric, r.attack, r.harmful_samples, r.defense, r.defense_seed) == (
            "restricted_accuracy", "few_shot", 20, "mlac", 3,
        )  # fmt: skip
        assert r.attack_params["classes"] == 2
        assert r.attack_params["outcome"] == "complete"
        assert r.attack_params["batch_sizes"] == [8, 64]
        assert r.base_params["world"]["train"] == made_rows(changes)
        assert 0 <= r.value <= 1
        assert r.threat_model == "open_weights"
        assert r.value * r.n == pytest.approx(round(r.value * r.n))
    for r in reruns:
        assert {name: r.attack_params[name] for name in chosen} == {name: winner.attack_params[name] for name in chosen}
        assert r.step % 2 == 0
    start = {r.metric: r for r in records["start"]}
    assert 0 <= start["desired_accuracy"].value <= 1
    assert start["desired_accuracy"].n == len(stages["body"].world.rows("heldout"))
    assert start["train_wall_s"].value > 0


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    """But for the seconds."""
    found = []
    for store in ("a", "b"):
        _, records = run(tmp_path, tmp_path / store)
        found.append([r for rows in records.values() for r in rows if r.metric != "train_wall_s"])
    assert found[0] == found[1]
    assert len(found[0]) == 4 + 6 + 1


def test_starts_differ_as_they_say(tmp_path):
    """Random weights are none of the pretrained ones; as pretrained they are; trained ones moved away."""
    store = tmp_path / "store"
    starts = [
        {"name": "random"},
        {"name": "pretrained"},
        RECIPE["start"],
        {**RECIPE["start"], "defense": {"name": "sft"}},
    ]
    made = recipe(tmp_path, attack=None, matrix={"start": starts})
    assert run_recipe(made, made.stages(), store, 1, "cpu", lambda text, code: code) == 0
    stages = [stage for stage in in_order(made.stages()) if isinstance(stage, Start)]
    (base,) = [stage for stage in in_order(made.stages()) if isinstance(stage, Body)]
    weights = [load_body(store / stage.folder)[0].first.weight for stage in (base, *stages)]
    assert weights[2].equal(weights[0])
    assert not any(weights[i].equal(weights[0]) for i in (1, 3, 4))
    assert not weights[3].equal(weights[4])
    assert set(load_file(store / stages[2].folder / "heads.safetensors")) == {
        "head.weight", "retained_head.weight", "retained_head.bias",
    }  # fmt: skip


def test_an_encoder_is_a_folder_that_transformers_loads(tmp_path):
    stages, _ = run(tmp_path, tmp_path / "store", attack=None, **TEXTS)
    folder = tmp_path / "store" / stages["start"].folder
    ours, tokenizer = load_body(folder)
    theirs = dict(AutoModel.from_pretrained(folder).named_parameters())
    assert all(weight.equal(theirs[name]) for name, weight in ours.encoder.named_parameters())
    assert tokenizer(stages["body"].world.rows("heldout").inputs[0])["input_ids"]


def test_one_seed_draws_the_same_samples_from_every_start(tmp_path):
    made = recipe(tmp_path, matrix={"start": [{"name": "random"}, {"name": "pretrained"}], "seed": [1, 2]})
    attacks = [stage for stage in made.stages() if isinstance(stage, FewShotAttack)]
    seeds = [(stage.start.start.name, stage.attack.seed, stage.attack._samples(100, "rerun", 0)) for stage in attacks]
    by_seed = {seed: {samples for _, s, samples in seeds if s == seed} for seed in (1, 2)}
    assert all(len(samples) == 1 for samples in by_seed.values())
    assert by_seed[1] != by_seed[2]


def test_a_start_that_diverges_is_a_row_without_a_value(tmp_path):
    """And nothing is attacked."""
    training = {**TRAINING, "learning_rate": 1e20, "max_grad_norm": None, "max_steps": 50}
    defense = {"name": "adversarial", "lam": 1e6}
    made = recipe(tmp_path, start={"name": "trained", "defense": defense, "training": training})
    run_recipe(made, made.stages(), tmp_path / "store", 1, "cpu", lambda text, code: code)
    stages = {stage.kind: stage for stage in in_order(made.stages())}
    (row,) = read_records(tmp_path / "store" / stages["start"].folder / "records.jsonl")
    assert (row.metric, row.value, row.status) == ("desired_accuracy", None, "diverged")
    assert not (tmp_path / "store" / stages["few_shot"].folder).exists()


WRONG = {
    "unknown world": ({"world": {"name": "product"}}, "products"),
    "K < 0": (
        {"start": {"name": "trained", "defense": {**MLAC, "inner_steps": -1}, "training": TRAINING}},
        "inner_steps",
    ),
    "unknown task": ({"task": "forbidden"}, "restricted"),
    "more samples than the pool": ({"attack": {**RECIPE["attack"], "num_samples": 101}}, "at most the 100 rows"),
    "an encoder on vectors": ({"body": {"name": "encoder"}}, "vectors"),
    "pretraining of an encoder": ({**TEXTS, "pretraining": TRAINING}, "pretraining is of an mlp"),
    "a seed of its own": ({"attack": {**RECIPE["attack"], "seed": 2}}, "attack.seed has no effect"),
    "no such body, nothing attacked": (
        {**TEXTS, "body": {"name": "pretrained", "name_or_path": "asset:minilmm"}, "attack": None},
        "no such packaged model.*asset:minilm",
    ),
    "no such body": ({**TEXTS, "body": {"name": "pretrained", "name_or_path": "asset:minilmm"}}, "no such packaged"),
    "an MLP on texts": ({**TEXTS, "body": {"name": "mlp"}}, "texts"),
}


@pytest.mark.parametrize(("changes", "told"), WRONG.values(), ids=WRONG)
def test_bad_input_is_named_before_any_work(tmp_path, changes, told):
    with pytest.raises(InputError, match=told):
        recipe(tmp_path, **changes)
