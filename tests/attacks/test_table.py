"""The tables of attacks and defenses: what they take, what they leave out, and what a recipe may name."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from inoculate.attacks.few_shot import FewShot
from inoculate.attacks.finetune import Finetune
from inoculate.attacks.table import ATTACKS, FinetuneConfig
from inoculate.core.types import Value
from inoculate.defenses import DEFENSES, SFT, AnyDefense, DefenseConfig, Lisa

TASK = {"source": "sandbox-sentiment", "split": "attack"}


class Twice(Finetune):
    name: Literal["twice"] = "twice"  # type: ignore[assignment]


class Half(Value):
    name: Literal["half"] = "half"
    needs: ClassVar = {"align": 1}


def test_what_attacks_there_are():
    assert ATTACKS.group == "inoculate.attacks"
    assert ATTACKS["finetune"] is Finetune and ATTACKS["few_shot"] is FewShot


def test_a_recipe_s_attack_is_a_fine_tuning_by_default():
    attack = TypeAdapter(FinetuneConfig)
    plain = attack.validate_python({"task": TASK, "poison_ratio": 0})
    assert type(plain) is Finetune
    assert attack.validate_python({"name": "finetune", "task": TASK, "poison_ratio": 0}) == plain
    with pytest.raises(ValidationError):
        attack.validate_python({"name": "few_shot"})  # an attack, but no fine-tuning


@pytest.mark.parametrize(
    ("name", "thing", "told"),
    [
        ("twice", Twice, None),
        ("thrice", Twice, 'expected a field `name: Literal["thrice"] = "thrice"`'),
        ("half", Half, "expected a subclass of inoculate.Finetune"),
        ("half", "Half", "expected a subclass of inoculate.core.types.Value"),
    ],
)
def test_what_a_plug_in_may_bring_as_an_attack(name, thing, told):
    assert ATTACKS._fault(name, thing) == told


def test_what_a_plug_in_may_bring_as_a_defense():
    assert DEFENSES.group == "inoculate.defenses"
    assert DEFENSES._fault("sft", SFT) is None
    assert DEFENSES._fault("sgd", SFT) == 'expected a field `name: Literal["sgd"] = "sgd"`'
    assert DEFENSES._fault("half", Half) == "Half has no `backward`"
    assert DEFENSES._fault("twice", Twice) == "Twice has no `needs`"


def test_guards_are_trained_by_and_are_no_alignment():
    assert TypeAdapter(AnyDefense).validate_python({"name": "lisa"}) == Lisa()
    for name in DEFENSES:
        if name not in ("security_vector", "lisa", "together"):
            assert TypeAdapter(DefenseConfig).validate_python({"name": name}).name == name
    for name in ("security_vector", "lisa"):
        with pytest.raises(ValidationError):
            TypeAdapter(DefenseConfig).validate_python({"name": name})
