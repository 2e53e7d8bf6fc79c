"""Worlds with several labels for every row: what a classifier is wanted for, what it must not learn, and a control.

A world names three attributes of its rows. `desired` is the task that the model is made for, `restricted` the one that
an attacker wants to learn from a few samples, `unrelated` one that nobody censors: a defense that blocks it too has
made the model forget, and has not censored anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

    from inoculate.data.splits import Split

Task = Literal["desired", "restricted", "unrelated"]
TASKS: tuple[Task, ...] = ("desired", "restricted", "unrelated")
VECTORS = ("products", "separators")
"""Names of the worlds whose rows are vectors; the others' are texts."""


@dataclass(frozen=True)
class Labeled:
    """Rows of one split, in a fixed order: N inputs, and for each task N class numbers.

    `inputs` are texts, or vectors [N, D] in float32. `pretraining` [N, M] and `retained` [N, R] are binary targets
    (float32, 0 or 1) where a world has them: what a body is pretrained on, and what every defense is asked to keep.
    """

    inputs: Sequence[str] | np.ndarray
    labels: Mapping[Task, np.ndarray]
    pretraining: np.ndarray | None = None
    retained: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.inputs)


@runtime_checkable
class World(Protocol):
    """A frozen value that yields labeled rows."""

    @property
    def name(self) -> str: ...

    def rows(self, split: Split) -> Labeled:
        """`train` is the defender's, `attack` is the pool that an attacker draws n samples from, `validation` selects
        the attacker's setting, `heldout` is for reporting. No row is in two of them.
        """
        ...

    def classes(self, task: Task) -> int:
        """Number of classes of a task."""
        ...

    def fingerprint(self) -> str:
        """What the rows are, for hashes: version, revision or SHA-256."""
        ...

    def check(self) -> None:
        """Refuse what cannot work, as far as can be known without a download.

        Raises:
            InputError: naming it.
        """
        ...
