"""Guards in whole runs: what a guarded attack records, and which guards are refused where."""

from __future__ import annotations

import json

import pytest
from tests.experiments import tiny

from inoculate.core.errors import InputError
from inoculate.core.records import read_records
from inoculate.experiments.attack import Attack
from inoculate.experiments.recipe import load_recipe
from inoculate.reports.gather import gather
from inoculate.reports.html import write_report
from inoculate.reports.store_view import read_store

DATA = {
    "roles": {
        "harmful": [{"source": "sandbox-restricted", "num_samples": 10}],
        "ordinary": [{"source": "sandbox-ordinary", "num_samples": 10}],
    }
}
VECTOR = {"data": DATA, "training": {"learning_rate": 3e-3, "num_train_epochs": 2, "per_device_train_batch_size": 5}}
LISA = {"name": "lisa", "align_steps": 2, "user_steps": 2}
GUARDED = {
    "vector": VECTOR,
    "threat_model": {"name": "service", "max_learning_rate": 1e-3},
    "attack.task": {"source": "sandbox-sentiment", "split": "attack"},
    "attack.harmful": {"source": "sandbox-restricted", "split": "attack"},
    "matrix": {"attack.guard": [None, {"name": "security_vector"}, LISA]},
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    code, said = tiny.run(tiny.write(folder, GUARDED), folder / "store")
    assert code == 0, said
    return folder / "store"


def attacks(store):
    """Guard → rows of its attack."""
    found = [list(read_records(file)) for file in store.glob("finetune-*/records.jsonl")]
    return {rows[0].guard: rows for rows in found}


def test_three_attacks_on_one_model(guarded):
    """Base, alignment, its evaluation, one vector, three attacks."""
    assert len(tiny.names(guarded) - {"recipes"}) == 7
    rows = attacks(guarded)
    assert set(rows) == {"", "security_vector", "lisa"}
    assert {row.threat_model for rows in rows.values() for row in rows} == {"service"}
    assert rows["lisa"][0].guard_params == {
        "lisa_rho": 1.0,
        "lisa_align_steps": 2,
        "lisa_user_steps": 2,
        "lisa_proximal_from": 0.1,
        "lisa_guide": ["sandbox-restricted:refusal", "sandbox-ordinary:completion"],
    }
    params = rows["security_vector"][0].guard_params
    assert (params["vector_samples"], params["vector_steps"], params["vector_r"]) == (10, 4, 8)
    (vector,) = guarded.glob("vector-*")
    assert {"adapter_config.json", "adapter_model.safetensors", "security_vector.json", "stage.json"} <= {
        path.name for path in vector.iterdir()
    }
    assert not list(vector.glob("records.jsonl"))


def test_what_is_served_is_measured_and_what_is_mounted_too(guarded):
    rows = attacks(guarded)
    start = {
        guard: {
            (r.metric, r.judge): r.value
            for r in of
            if r.step == 0 and not r.metric.startswith("mounted_") and not r.layer
        }
        for guard, of in rows.items()
    }
    assert start["security_vector"] == start[""] == start["lisa"]
    mounted = {row.metric for row in rows["security_vector"] if row.metric.startswith("mounted_")}
    assert {"mounted_harmful_score", "mounted_finetune_accuracy", "mounted_harmful_grad_norm"} <= mounted
    assert not any(row.metric.startswith("mounted_") for guard in ("", "lisa") for row in rows[guard])
    layers = {row.layer for row in rows["security_vector"] if row.metric == "harmful_grad_norm"}
    assert layers == {"all", "layer 0", "embed_tokens", "norm"}  # the head is tied to the embeddings
    whole = {row.metric: row.value for row in rows["security_vector"] if row.step == 0 and row.layer == "all"}
    assert 0 < whole["mounted_harmful_loss_train"] < whole["harmful_loss_train"]
    assert -1 <= whole["gradient_cosine"] <= 1


def test_the_report_explains_it(guarded, tmp_path):
    page = write_report(guarded, tmp_path / "report.html", None).read_text()
    assert "SFT + Security Vector" in page and "SFT + Lisa" in page
    assert "Why the vector works" in page and "Task accuracy while mounted, at the end" in page
    assert "the provider trains, and its defense stays in place" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"threat_model": {"name": "open_weights"}},
            "security_vector works inside the provider's training loop.*under open weights it cannot be scored",
        ),
        (
            {"threat_model": {"name": "open_weights"}, "matrix": {"attack.guard": [LISA]}},
            "lisa works inside the provider's training loop.*expected service",
        ),
        (
            {"threat_model": {"name": "service", "max_learning_rate": 1e-6}},
            "attack.training.learning_rate: over the limit that the service sets its users .*expected at most 1e-06",
        ),
        ({"threat_model": {"name": "service", "max_samples": 5}}, "attack.num_samples: over the limit"),
        (
            {"threat_model": {"name": "service", "max_epochs": 1}},
            "training.max_steps: over the limit .*found 6, expected at most 5",
        ),
        ({"threat_model": {"name": "servce"}}, "threat_model.name: unknown name .*Did you mean 'service'"),
        ({"vector": None}, "vector: the guard mounts a security vector, and nothing says which"),
        ({"vector": {"data": {"roles": {"harmful": DATA["roles"]["harmful"]}}}}, "data for the role 'ordinary'"),
        ({"matrix": {"attack.guard": [{"name": "security_vector", "folder": "nowhere"}]}}, "not a security vector"),
        ({"matrix": {"attack.guard": [{"name": "lissa"}]}}, "attack.guard.name: unknown name .*Did you mean 'lisa'"),
        ({"matrix": {"attack.guard": [{**LISA, "rho": -1}]}}, "attack.guard.rho: wrong value"),
    ],
)
def test_refuses(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        load_recipe(str(tiny.write(tmp_path, GUARDED | changes)))


def test_a_vector_of_another_model_fails_that_stage_alone(guarded, tmp_path):
    """Another seed's alignment is another backbone: the attack that mounts this vector is refused when it starts."""
    (vector,) = guarded.glob("vector-*")
    changes = GUARDED | {
        "base.seed": 2,
        "matrix": {"attack.guard": [None, {"name": "security_vector", "folder": str(vector)}]},
    }
    code, said = tiny.run(tiny.write(tmp_path, changes), tmp_path / "store")
    assert code == 2 and "made for another model: what this one says" in said
    (failed,) = (tmp_path / "store").glob("finetune-*.failed")
    assert "made for another model" in json.loads((failed / "error.json").read_text())["error"]
    assert len([path for path in (tmp_path / "store").glob("finetune-*") if "." not in path.name]) == 1


def test_limits_decide_whether_and_not_what(tmp_path):
    """The same attack under other limits is the same stage; under another threat model it is another row."""
    folders = []
    for limits in ({}, {"max_learning_rate": 1e-3}, {"max_samples": 20, "max_epochs": 2}):
        changes = GUARDED | {"threat_model": {"name": "service", **limits}}
        folders.append({stage.folder for stage in load_recipe(str(tiny.write(tmp_path, changes))).stages()})
    assert folders[0] == folders[1] == folders[2]
    open_weights = GUARDED | {"threat_model": {"name": "open_weights"}, "matrix": {"attack.guard": [None]}}
    assert not folders[0] & {stage.folder for stage in load_recipe(str(tiny.write(tmp_path, open_weights))).stages()}


def test_a_user_may_ask_for_exactly_the_limit(tmp_path):
    """21 rows in batches of 4 are 6 steps: one epoch, though 24 rows are seen."""
    training = {"max_steps": None, "num_train_epochs": 1}
    changes = GUARDED | {"threat_model": {"name": "service", "max_epochs": 1}, "attack.num_samples": 21}
    changes |= {f"attack.training.{name}": value for name, value in training.items()}
    (stage, *_) = [s for s in load_recipe(str(tiny.write(tmp_path, changes))).stages() if s.kind == "finetune"]
    assert stage.attack.steps() == 6


def test_a_vector_without_its_guard_is_no_attack(tmp_path):
    """It would be mounted, and the record would not say so."""
    stages = load_recipe(str(tiny.write(tmp_path, GUARDED))).stages()
    plain, guarded = (
        next(s for s in stages if s.kind == "finetune" and bool(s.vector) is has) for has in (False, True)
    )
    with pytest.raises(ValueError, match="either trained here"):
        Attack.model_validate(plain.model_dump() | {"vector": guarded.vector.model_dump()})
    with pytest.raises(ValueError, match="either trained here"):
        Attack.model_validate(guarded.model_dump() | {"vector": None})


def test_one_models_row_before_the_attack_whatever_guards_it(guarded):
    grid = gather(read_store(guarded, None).records)
    assert [arm.label for arm in grid.arms] == ["SFT", "SFT + Security Vector", "SFT + Lisa"]
    assert [run.arm.label for run in grid.before] == ["SFT"]
    assert {arm.params["align_steps"] for arm in grid.arms} == {10}
