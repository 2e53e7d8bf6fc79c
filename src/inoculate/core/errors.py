"""Errors as part of the interface: one message that says where, what was found, and what would have been right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LEFT_OUT = "plug-in"
"""What every warning about a plug-in begins with."""


class PlugInWarning(UserWarning):
    """A plug-in that is left out, and why."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name most like `word`, or None when nothing is close."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[close[0]] if close else None


class InoculateError(Exception):
    """Anything this package raises on purpose."""


class InputError(InoculateError):
    """The input is wrong, and nothing was started. The command ends with exit code 2.

    Args:
        problem: what is wrong, as a short sentence.
        file: the file (or option) that holds the mistake.
        field: the dotted name of the field inside it.
        found: what stood there.
        expected: what may stand there.
        known: valid names; the nearest to `found` is proposed.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: object = None,
        field: str | None = None,
        found: object = None,
        expected: str | None = None,
        known: Iterable[str] = (),
    ) -> None:
        self.problem, self.file, self.field, self.found = problem, file, field, found
        self.expected = expected
        self.suggestion = nearest(str(found), known) if found is not None else None
        super().__init__(self._message())

    def _message(self) -> str:
        where = ": ".join(_short_place(str(part)) for part in (self.file, self.field) if part is not None)
        text = f"{where}: {self.problem}" if where else self.problem
        details = []
        if self.found is not None:
            details.append(f"found {_short(self.found)}")
        if self.expected is not None:
            details.append(f"expected {self.expected}")
        if details:
            text += " (" + ", ".join(details) + ")"
        if self.suggestion is not None and self.suggestion != self.found:
            text += f". Did you mean {self.suggestion!r}?"
        return text

    def located(self, *, file: object = None, field: str | None = None) -> InputError:
        """The same error with a file or a field name where it had none."""
        return self._with(self.file if self.file is not None else file, self.field if self.field is not None else field)

    def inside(self, file: object) -> InputError:
        """The same error of something that `file` names: `file` comes first."""
        return self._with(file if self.file in (None, file) else f"{file}: {self.file}", self.field)

    def _with(self, file: object, field: str | None) -> InputError:
        twin = InputError(
            self.problem,
            file=file,
            field=field,
            found=self.found,
            expected=self.expected,
        )
        twin.suggestion = self.suggestion
        twin.args = (twin._message(),)
        return twin


class StageError(InoculateError):
    """A stage struck a problem midway; what was finished before is kept. Exit code 1."""


def _short_place(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
