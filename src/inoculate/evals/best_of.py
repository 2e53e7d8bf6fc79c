"""What a search of k trials is expected to find, from the N trials that were made, in any order.

Trials of a search that learns are not exchangeable: early ones are worse. Over all orders, these curves flatter the
first trials of such a search; between searches of one kind they are fair.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def expected_best(values: Sequence[float], k: int) -> float:
    """E[max of k of the N values], drawn without replacement: Σᵢ x₍ᵢ₎ C(i−1, k−1) / C(N, k), x₍ᵢ₎ the i-th smallest.

    Dodge et al., EMNLP 2019 (arXiv:1909.03004), draw with replacement, which is biased low for k near N; here k = N
    gives the maximum itself.

    Raises:
        ValueError: unless 1 ≤ k ≤ N.
    """
    n = _checked(len(values), k)
    from scipy.special import gammaln

    i = np.arange(k, n + 1)
    log_weights = gammaln(i) - gammaln(i - k + 1) - gammaln(k) - (gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))
    return float(np.exp(log_weights) @ np.sort(np.asarray(values, dtype=float))[k - 1 :])


def chance_of_break(broke: Sequence[bool], k: int) -> float:
    """The chance that k of the N trials hold one that broke the model: 1 − C(N − m, k) / C(N, k), m that did.

    Raises:
        ValueError: unless 1 ≤ k ≤ N.
    """
    n, m = _checked(len(broke), k), sum(map(bool, broke))
    if k > n - m:
        return 1.0
    i = np.arange(k)
    return float(1 - np.exp(np.log1p(-m / (n - i)).sum()))


def trials_to_break(broke: Sequence[bool]) -> float | None:
    """The expected place of the first trial that broke the model, in random order: (N + 1)/(m + 1); None if m = 0."""
    m = sum(map(bool, broke))
    return (len(broke) + 1) / (m + 1) if m else None


def _checked(n: int, k: int) -> int:
    if not 1 <= k <= n:
        raise ValueError(f"expected 1 ≤ k ≤ {n}, found {k}")
    return n
