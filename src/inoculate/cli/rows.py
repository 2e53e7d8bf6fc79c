"""How many rows of the user's files are taken where nobody says it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from inoculate.cli.app import say

ATTACKERS, PROVIDERS = 1000, 100
"""Rows of an attacker's data, and harmful rows of a provider's, if there are as many."""


class Rows:
    """Fills in `num_samples` in settings that are valid, and says so once the work is done.

    Args:
        most: taken if there are as many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: int | None = None

    def of_attack(self, attack: dict[str, Any], poison_ratios: Iterable[float]) -> None:
        """Give a user's data a number of rows, if none is there: as many as allow every one of the poison ratios."""
        from inoculate.data.mix import Part, most_rows

        def count() -> int:
            harmful = attack.get("harmful")
            task = Part.model_validate(attack["task"])
            ratios = [float(ratio) for ratio in poison_ratios]
            return most_rows(task, harmful and Part.model_validate(harmful), ratios, self._most)

        self._fill(attack, count)

    def of_part(self, part: dict[str, Any]) -> None:
        """Give a source a number of rows, if none is there."""
        from inoculate.data.mix import Part

        self._fill(part, lambda: min(self._most, len(Part.model_validate(part).load(seed=0))))

    def noted(self, code: int) -> int:
        """The exit code; of a run that went well on fewer rows than usual, after a line that says so."""
        if code == 0 and self._taken is not None and self._taken < self._most:
            say(f"{self._taken} rows were taken, as many as there are (--num-samples for another number)")
        return code

    def _fill(self, settings: dict[str, Any], count: Callable[[], int]) -> None:
        if settings.get("num_samples") is None:
            self._taken = settings["num_samples"] = count()
