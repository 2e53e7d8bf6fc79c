"""The one message: where, what was found, what was expected, the nearest name."""

from __future__ import annotations

import pickle

import pytest

from inoculate.core.errors import InoculateError, InputError, StageError, nearest


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "wrong"),
        ({"file": "a.yaml"}, "a.yaml: wrong"),
        ({"field": "x.y"}, "x.y: wrong"),
        ({"file": "a.yaml", "field": "x.y"}, "a.yaml: x.y: wrong"),
        ({"found": 3}, "wrong (found 3)"),
        ({"found": "3", "expected": "a word"}, "wrong (found '3', expected a word)"),
        ({"expected": "a word"}, "wrong (expected a word)"),
        ({"found": "bster", "known": ["sft", "booster"]}, "wrong (found 'bster'). Did you mean 'booster'?"),
        ({"found": "qqqq", "known": ["sft", "booster"]}, "wrong (found 'qqqq')"),
        ({"found": "sft", "known": ["sft"]}, "wrong (found 'sft')"),
        ({"found": 0, "expected": "≥ 1"}, "wrong (found 0, expected ≥ 1)"),
        ({"found": False}, "wrong (found False)"),
    ],
)
def test_message(given, message):
    assert str(InputError("wrong", **given)) == message


def test_a_long_value_is_shortened():
    text = str(InputError("wrong", found="x" * 500))
    assert len(text) < 110 and text.endswith("…)")


def test_nearest_ignores_case_and_gives_up_on_strangers():
    assert nearest("BOOSTR", ["sft", "Booster"]) == "Booster"
    assert nearest("zzz", ["sft", "Booster"]) is None
    assert nearest("sft", []) is None


def test_located_fills_in_what_is_missing_and_changes_nothing_else():
    error = InputError("wrong", field="x", found="bster", expected="a name", known=["booster"])
    located = error.located(file="a.yaml", field="ignored")
    assert str(located) == "a.yaml: x: wrong (found 'bster', expected a name). Did you mean 'booster'?"
    assert str(located.located(file="b.yaml")) == str(located)
    assert str(error) == "x: wrong (found 'bster', expected a name). Did you mean 'booster'?"


def test_errors_travel_between_processes():
    error = InputError("wrong", file="a.yaml", field="x", found="bster", known=["booster"])
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is InputError and str(back) == str(error)
    assert str(back.located(file="b")) == str(error)
    assert str(pickle.loads(pickle.dumps(StageError("half")))) == "half"
    assert issubclass(StageError, InoculateError) and not issubclass(StageError, InputError)
