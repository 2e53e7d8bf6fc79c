"""Threat models: what a provider runs, and what no attacker with the weights would."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from inoculate.attacks.finetune import Finetune
from inoculate.attacks.guards import LisaGuard, MountedVector
from inoculate.attacks.threat_model import LIMITS, OpenWeights, Service, ThreatModel
from inoculate.core.errors import InputError
from inoculate.training.config import Training


def attack(guard=None, num_samples=20, **training) -> Finetune:
    fields = {"learning_rate": 1e-4, "per_device_train_batch_size": 4, **training}
    task = {"source": "sandbox-sentiment", "split": "attack"}
    return Finetune.model_validate(
        {"task": task, "poison_ratio": 0, "num_samples": num_samples, "guard": guard, "training": Training(**fields)}
    )


def test_under_open_weights_all_is_possible_but_a_guard():
    OpenWeights().check(attack(learning_rate=10.0, num_train_epochs=1000))
    for guard in (LisaGuard(), MountedVector()):
        with pytest.raises(InputError) as refused:
            OpenWeights().check(attack(guard))
        assert str(refused.value).startswith(
            f"threat_model: {guard.name} works inside the provider's training loop, and an attacker who has the weights "
            "trains without it; under open weights it cannot be scored (found 'open_weights', expected service)"
        )


@pytest.mark.parametrize(
    ("limits", "asked", "told"),
    [
        ({"max_learning_rate": 1e-4}, {"learning_rate": 1.1e-4}, "attack.training.learning_rate|0.00011|0.0001"),
        ({"max_samples": 20}, {"num_samples": 21}, "attack.num_samples|21|20"),
        ({"max_epochs": 2}, {"num_train_epochs": 2.5}, "attack.training.num_train_epochs|2.5|2"),
        ({"max_epochs": 2}, {"max_steps": 11}, "attack.training.max_steps|11|10"),
        ({"max_epochs": 2, "max_samples": 40}, {"num_samples": 40, "max_steps": 21}, "attack.training.max_steps|21|20"),
    ],
)
def test_a_service_refuses_what_is_over_its_limit(limits, asked, told):
    field, found, limit = told.split("|")
    with pytest.raises(InputError) as refused:
        Service(**limits).check(attack(**asked))
    assert str(refused.value) == (
        f"{field}: over the limit that the service sets its users (found {found}, expected at most {limit})"
    )


@pytest.mark.parametrize(
    ("limits", "asked"),
    [
        ({}, {"learning_rate": 10.0, "num_train_epochs": 1000}),
        ({"max_learning_rate": 1e-4}, {"learning_rate": 1e-4, "num_train_epochs": 1000}),
        ({"max_samples": 20}, {"learning_rate": 10.0}),
        ({"max_epochs": 2}, {"num_train_epochs": 2}),
        ({"max_epochs": 2}, {"max_steps": 10}),
        ({"max_learning_rate": 1.0}, {"max_steps": 10_000}),
        ({}, {"guard": LisaGuard()}),
    ],
)
def test_a_service_runs_what_is_within(limits, asked):
    Service(**limits).check(attack(**asked))


def test_it_is_chosen_by_name():
    chosen = TypeAdapter(ThreatModel)
    assert chosen.validate_python({"name": "open_weights"}) == OpenWeights()
    assert chosen.validate_python({"name": "service", "max_samples": 5}) == Service(max_samples=5)
    assert set(Service.model_fields) - {"name"} == LIMITS
    for wrong in ({"name": "open_weights", "max_samples": 5}, {"name": "service", "max_epochs": 0}, {"name": "none"}):
        with pytest.raises(ValidationError):
            chosen.validate_python(wrong)
