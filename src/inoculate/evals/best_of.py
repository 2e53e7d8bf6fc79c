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
    gives the maximum itself. Without replacement it is unbiased: Tang et al., ACL 2020 (arXiv:2004.13705).

    Raises:
        ValueError: unless 1 ≤ k ≤ N, or a value that is not finite (what to count for a failed trial is the caller's).
    """
    return expected_best_curve(values, [k])[0]


def expected_best_curve(values: Sequence[float], ks: Sequence[int]) -> list[float]:
    """`expected_best` for each of `ks`."""
    x = np.sort(np.asarray(values, dtype=float))
    if not np.isfinite(x).all():
        raise ValueError(f"expected finite values, found {list(values)}")
    return [float(_weights(len(x), k) @ x[k - 1 :]) for k in ks]


def chance_of_break(broke: Sequence[bool], k: int) -> float:
    """The chance that k of the N trials hold one that broke the model: 1 − C(N − m, k) / C(N, k), m that did.

    Raises:
        ValueError: unless 1 ≤ k ≤ N.
    """
    n, m = _checked(len(broke), k), sum(map(bool, broke))
    if k > n - m:
        return 1.0
    i = np.arange(k)
    return float(-np.expm1(np.log1p(-m / (n - i)).sum()))


def chance_of_break_curve(broke: Sequence[bool], ks: Sequence[int]) -> list[float]:
    """`chance_of_break` for each of `ks`."""
    return [chance_of_break(broke, k) for k in ks]


def trials_to_break(broke: Sequence[bool]) -> float | None:
    """The expected place of the first trial that broke the model, in random order: (N + 1)/(m + 1).

    None if m = 0: more than N, and how many more is not known.
    """
    m = sum(map(bool, broke))
    return (len(broke) + 1) / (m + 1) if m else None


def _weights(n: int, k: int) -> np.ndarray:
    """C(i−1, k−1) / C(n, k) for i = k, …, n, in logarithms, since C(2000, 1000) is no float; they add up to 1."""
    from scipy.special import gammaln

    _checked(n, k)
    i = np.arange(k, n + 1)
    log_weights = gammaln(i) - gammaln(i - k + 1)
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def _checked(n: int, k: int) -> int:
    if not 1 <= k <= n:
        raise ValueError(f"expected 1 ≤ k ≤ {n}, found {k}")
    return n
