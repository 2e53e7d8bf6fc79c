"""Worlds of vectors: cheap enough to defend and attack a small network with many seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeInt, PositiveInt

from inoculate.core.seeds import numpy_rng
from inoculate.core.types import Value
from inoculate.data.worlds import Labeled, Task

if TYPE_CHECKING:
    import numpy as np

    from inoculate.data.splits import Split

VERSION = "1"
SEPARATORS_VERSION = "1"
_PAIRS, _INPUTS = 8, 25
_TASKS: dict[Task, tuple[int, ...]] = {"desired": (0, 1, 2), "unrelated": (3, 4), "restricted": (5, 6, 7)}
_MIXED: tuple[Task, ...] = ("desired", "unrelated", "restricted")


class Products(Value):
    """Signs of sums of products of hidden coordinates: hard to learn from few samples, unless the products are there.

    x = Q s with s ~ N(0, I₁₆) and a fixed rotation Q; h_j = s_2j · s_2j+1, cut off at ±1. Desired: h₀ + h₁ + h₂ > 0;
    unrelated: h₃ + h₄ > 0; restricted: h₅ + h₆ + h₇ > 0. `pretraining` are 32 sparse mixtures of all eight products,
    `retained` 8 mixtures of the first five: nothing asks a defense to keep what the restricted task needs. Ours.
    """

    name: Literal["products"] = "products"
    seed: NonNegativeInt = 0
    train: PositiveInt = 100_000
    attack: PositiveInt = 2_000
    validation: PositiveInt = 500
    heldout: PositiveInt = 1_000

    def rows(self, split: Split) -> Labeled:
        """Vectors [N, 16] of one split, from a random stream of its own."""
        import numpy as np

        rotation = np.linalg.qr(numpy_rng(self.seed, "products", "rotation").standard_normal((2 * _PAIRS, 2 * _PAIRS)))[
            0
        ]
        hidden = numpy_rng(self.seed, "products", split).standard_normal((getattr(self, split), 2 * _PAIRS))
        products = (hidden[:, 0::2] * hidden[:, 1::2]).clip(-1, 1)
        labels: dict[Task, np.ndarray] = {
            task: (products[:, at].sum(1) > 0).astype(np.int64) for task, at in _TASKS.items()
        }
        return Labeled(
            (hidden @ rotation.T).astype(np.float32),
            labels,
            pretraining=_signs(products @ self._mixtures("pretraining", 32, _PAIRS)),
            retained=_signs(products @ self._mixtures("retained", 8, 5)),
        )

    def classes(self, task: Task) -> int:
        """Two, of every task."""
        return 2

    def fingerprint(self) -> str:
        """Version of what this file makes."""
        return f"products-{VERSION}"

    def check(self) -> None:
        """Nothing can be missing."""

    def _mixtures(self, name: str, tasks: int, among: int) -> np.ndarray:
        """Weights [8, tasks]: three of the first `among` products in each task, all of them in several."""
        import numpy as np

        rng = numpy_rng(self.seed, "products", name)
        weights = np.zeros((_PAIRS, tasks))
        for task in range(tasks):
            chosen = (task + np.array([0, *(1 + rng.choice(among - 1, 2, replace=False))])) % among
            weights[chosen, task] = rng.standard_normal(3)
        return weights


class Separators(Value):
    """Signs of random directions: x ~ N(0, I₂₅), every task is w·x > 0.

    The inputs and the kind of task are the published code's (Henderson et al., arXiv:2211.14946, its synthetic
    regression: 25 Gaussian coordinates, one random direction each for the wanted and the unwanted task). Ours: 10⁵ rows
    in place of 10⁶, and everything that gives a body something to know beforehand. `pretraining` are 32 random
    directions. The three tasks are Gaussian mixtures of eight of them each, no two tasks of the same ones: desired of
    the first eight, unrelated of the second, restricted of the third. `retained` are 8 mixtures of the first two
    eights, made orthogonal to the restricted direction, so that their labels are independent of the restricted one.

    A linear world is learned from few samples by any network: it shows that code runs, not that a defense works.
    """

    name: Literal["separators"] = "separators"
    seed: NonNegativeInt = 0
    train: PositiveInt = 100_000
    attack: PositiveInt = 2_000
    validation: PositiveInt = 500
    heldout: PositiveInt = 1_000

    def rows(self, split: Split) -> Labeled:
        """Vectors [N, 25] of one split, from a random stream of its own."""
        import numpy as np

        tasks, pretraining, retained = self.directions()
        inputs = numpy_rng(self.seed, "separators", split).standard_normal((getattr(self, split), _INPUTS))
        return Labeled(
            inputs.astype(np.float32),
            {task: (inputs @ direction > 0).astype(np.int64) for task, direction in tasks.items()},
            pretraining=_signs(inputs @ pretraining),
            retained=_signs(inputs @ retained),
        )

    def classes(self, task: Task) -> int:
        """Two, of every task."""
        return 2

    def fingerprint(self) -> str:
        """Version of what this file makes."""
        return f"separators-{SEPARATORS_VERSION}"

    def check(self) -> None:
        """Nothing can be missing."""

    def directions(self) -> tuple[dict[Task, np.ndarray], np.ndarray, np.ndarray]:
        """Unit directions: of the three tasks [25], of pretraining [25, 32], of what is retained [25, 8]."""
        import numpy as np

        rng = numpy_rng(self.seed, "separators", "directions")
        pretraining = _unit(rng.standard_normal((_INPUTS, 32)))
        tasks: dict[Task, np.ndarray] = {}
        for task, eight in zip(_MIXED, np.split(pretraining[:, :24], 3, axis=1), strict=True):
            tasks[task] = _unit(eight @ rng.standard_normal(8))
        retained = pretraining[:, :16] @ rng.standard_normal((16, 8))
        retained -= np.outer(tasks["restricted"], tasks["restricted"] @ retained)
        return tasks, pretraining, _unit(retained)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / (vectors**2).sum(0) ** 0.5


def _signs(values: np.ndarray) -> np.ndarray:
    return (values > 0).astype("float32")
