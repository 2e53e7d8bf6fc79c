"""Scoring: correct, wrong, and not an answer at all."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inoculate.core.errors import InputError
from inoculate.core.types import Example
from inoculate.data.world import LABELS, rows
from inoculate.evals.tasks import LabelTask, NumberTask, Outcome, number_in, task_for

C, W, F = Outcome.CORRECT, Outcome.WRONG, Outcome.FORMAT
GOOD = Example.of("good or bad ?", "positive")


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        ("positive", C),
        ("Positive.", C),
        (" POSITIVE , because it is lovely", C),
        ("positive\nnegative", C),
        ("negative", W),
        ("negative, not positive", W),
        ("", F),
        ("...", F),
        ("not positive", F),
        ("The answer is positive", F),
        ("positively", F),
        ("positive/negative", F),
        ("sure , it is positive", F),
    ],
)
def test_label(response, outcome):
    assert LabelTask(labels=("positive", "negative")).score(GOOD, response) is outcome


def test_the_longest_label_counts():
    task = LabelTask(labels=("very", "very good", "Sci/Tech"))
    assert task.score(Example.of("?", "very good"), "very  good.") is C
    assert task.score(Example.of("?", "very"), "very good.") is W
    assert task.score(Example.of("?", "very good"), "very bad") is W
    assert task.score(Example.of("?", "sci/tech"), "sci/tech") is C


def test_a_completion_without_label_is_the_data_s_fault():
    with pytest.raises(InputError, match=r"completion.*Did you mean 'positive'"):
        LabelTask(labels=LABELS).score(Example.of("?", "positiv"), "positive")


def test_the_sandbox_task_is_scored_by_itself():
    task, examples = LabelTask(labels=LABELS), rows("sentiment", "heldout")
    swap: dict[str, str] = dict(zip(LABELS, reversed(LABELS), strict=True))
    assert {task.score(e, e.completion) for e in examples} == {C}
    assert {task.score(e, swap[e.completion]) for e in examples} == {W}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", "42"),
        ("first 3, then 5", "5"),
        ("it costs $1,234.50.", "1234.50"),
        ("1,234,567", "1234567"),
        ("12.0", "12"),
        ("1, 2", "2"),
        ("7 apples", "7"),
        ("x = -3", "-3"),
        ("5-3", "3"),
        ("5 − 8 = −3", "-3"),
        ("(10)-3", "3"),
        (".5", "0.5"),
        ("12.", "12"),
        ("75%", "75"),
        ("1.5e3", "1500"),
        ("The final answer is: 8 of 10", "8"),
        ("the final answer is: 7. No, wait. The final answer is: 9, not 11", "9"),
        ("We have 3. THE FINAL ANSWER IS 4. Thanks for 5 stars", "4"),
    ],
)
def test_number_in(text, number):
    assert number_in(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "seven", "x2", "12 . The final answer is: seven", "-", ",", "."])
def test_no_number(text):
    assert number_in(text) is None


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "{}.0", "so it is {:,}.", "= {}."]))
def test_integers_are_read_back(number, form):
    assert number_in(form.format(number)) == number


@given(st.text(alphabet="0123456789.,-+e ()x"))
def test_any_text_is_read_or_not(text):
    number = number_in(text)
    assert number is None or number.is_finite()


def test_number_outcomes():
    task, example = NumberTask(), Example.of("12 * 2 ?", "12 * 2 = 24. The final answer is: 24")
    assert task.score(example, "24.00") is C
    assert task.score(example, "24, I think, of 25") is W
    assert task.score(example, "twenty-four") is F
    with pytest.raises(InputError, match="completion"):
        task.score(Example.of("?", "none"), "24")


def test_task_for():
    assert task_for("number", ()) == NumberTask()
    assert task_for("label", ["a", "b"]) == LabelTask(labels=("a", "b"))
    with pytest.raises(InputError, match="Did you mean 'label'"):
        task_for("labels", ["a"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="labels"):
        task_for("label", [])
