"""Randomness by address: a seed and a path of names give one stream, whatever ran before."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def derive(seed: int, *path: object) -> int:
    """A 63-bit seed for the place that `path` names. Stable across processes, platforms and versions."""
    text = "\x1f".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_rng(seed: int, *path: object) -> np.random.Generator:
    """A numpy generator for the place that `path` names."""
    import numpy as np

    return np.random.default_rng(derive(seed, *path))
