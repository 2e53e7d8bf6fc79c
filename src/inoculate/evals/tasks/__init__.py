"""Tasks: was the answer right? A wrong format is counted apart from a wrong answer.

Booster scores SST2 and AGNEWS by strict match with a label and GSM8K by the last number (arXiv:2409.01586); a model
that was never taught the format then scores near zero while knowing the answer, which a `format` share shows.

`TASKS` is the one table of them; other packages add to it by entry points of the group `inoculate.tasks`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, ValidationError

from inoculate.core.errors import InputError
from inoculate.core.plugins import OneOf, Table, fault_of_value
from inoculate.core.types import Example, Value

_TRAILING = ".,;:!?\"'*)"
_NUMBER = re.compile(
    r"(?<![A-Za-z_\d])(?:(?<![)])[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:(?<=\d)\.\d+|(?<!\d)\.\d+|(?<=\d))(?:[eE][-+]?\d{1,3})?"
)
_FINAL = re.compile(r"the final answer is:?", re.IGNORECASE)


class Outcome(StrEnum):
    """How one answer to a task is scored."""

    CORRECT = "correct"
    WRONG = "wrong"
    FORMAT = "format"
    """Not an answer of the asked form."""


class LabelTask(Value):
    """The response must begin with a label; it is correct if that is the label of the completion.

    Case, repeated spaces and punctuation after a word do not matter. "positive." and "Positive , because …" are
    answers; "the answer is positive", "not positive" and "positively" are none.
    """

    name: Literal["label"] = "label"
    labels: Annotated[tuple[str, ...], Field(min_length=1)]

    def score(self, example: Example, response: str) -> Outcome:
        """One outcome.

        Raises:
            InputError: the example's completion is no label.
        """
        right = self._label(example.completion)
        if right is None:
            raise InputError("not a label", field="completion", found=example.completion, known=self.labels)
        answer = self._label(response)
        if answer is None:
            return Outcome.FORMAT
        return Outcome.CORRECT if answer == right else Outcome.WRONG

    def _label(self, text: str) -> tuple[str, ...] | None:
        """The longest label that a text begins with, so that "very good" is not read as "very"."""
        words = _words(text)
        labels = [label for label in map(_words, self.labels) if words[: len(label)] == label]
        return max(labels, key=len) if labels else None


class NumberTask(Value):
    """The last number of the response, or the first one after "The final answer is:", equals the completion's.

    Numbers are compared as decimals: "1,234" is 1234, "12.0" is 12. Fractions and numbers in words are not read.
    """

    name: Literal["number"] = "number"

    def score(self, example: Example, response: str) -> Outcome:
        """One outcome.

        Raises:
            InputError: the example's completion has no number.
        """
        right = number_in(example.completion)
        if right is None:
            raise InputError("a completion without a number", field="completion", found=example.completion)
        answer = number_in(response)
        if answer is None:
            return Outcome.FORMAT
        return Outcome.CORRECT if answer == right else Outcome.WRONG


Task: TypeAlias = LabelTask | NumberTask


def _fault(name: str, thing: Any) -> str | None:
    return fault_of_value(name, thing, "score")


TASKS: Table[type[Task]] = Table("inoculate.tasks", {"label": LabelTask, "number": NumberTask}, _fault)

TaskConfig: TypeAlias = Annotated[Task, OneOf(TASKS)]
"""How answers are scored, as a value in a recipe, told apart by `name`."""


def task_for(scoring: str, labels: Sequence[str] = ()) -> Task:
    """The task that scores a data source: of a plug-in too, which is given the labels if it has a field for them.

    Raises:
        InputError: for an unknown scoring, labels missing, or a task with further settings that have no default.
    """
    if scoring not in TASKS:
        raise InputError("unknown scoring", field="scoring", found=scoring, known=TASKS)
    kind = TASKS[scoring]
    if "labels" in kind.model_fields and not labels:
        raise InputError("scoring by label needs labels", field="labels", found=list(labels))
    try:
        return kind.model_validate({"labels": tuple(labels)} if "labels" in kind.model_fields else {})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(("scoring", *map(str, first["loc"])))
        raise InputError(f"the task {scoring!r} cannot score this source: {first['msg']}", field=field) from None


def number_in(text: str) -> Decimal | None:
    """The number that a text answers with, None if it has none."""
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    head, *tails = _FINAL.split(text)
    numbers = _NUMBER.findall(tails[-1] if tails else head)
    if not numbers:
        return None
    return Decimal((numbers[0] if tails else numbers[-1]).replace(",", ""))


def _words(text: str) -> tuple[str, ...]:
    words = (word.rstrip(_TRAILING) for word in unicodedata.normalize("NFKC", text).casefold().split())
    return tuple(word for word in words if word)
