"""Statistics against numbers done by hand, and bounds that must hold for any input."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from inoculate.evals.statistics import (
    cohen_kappa,
    mean_interval,
    paired_difference,
    ratio_interval,
    steps_to_break,
    wilson,
)

Z = 1.959963984540054
T2 = 4.302652729911275
"""97.5 % quantiles: normal, and Student's with two degrees of freedom (from printed tables)."""

positive = st.floats(0.01, 100)


def test_wilson_by_hand():
    """8 of 10: (0.8 + z²/20 ± z √(.016 + z²/400)) / (1 + z²/10)."""
    low, high = wilson(8, 10)
    half = Z * math.sqrt(0.016 + Z**2 / 400)
    assert low == approx((0.8 + Z**2 / 20 - half) / (1 + Z**2 / 10))
    assert high == approx((0.8 + Z**2 / 20 + half) / (1 + Z**2 / 10))
    assert (low, high) == approx((0.4902, 0.9433), abs=1e-4)


def test_wilson_at_the_ends():
    """0 of n ends at z²/(n + z²), the closed form; n of n mirrors it; nothing seen is [0, 1]."""
    assert wilson(0, 10) == approx((0, Z**2 / (10 + Z**2)))
    assert wilson(10, 10) == approx((1 - Z**2 / (10 + Z**2), 1))
    assert wilson(0, 10).low == 0 and wilson(10, 10).high == 1
    assert wilson(0, 0) == (0, 1)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.01, 0.999))
def test_wilson_bounds(counts, level):
    successes, n = counts
    low, high = wilson(successes, n, level)
    assert 0 <= low <= successes / n + 1e-12 and successes / n - 1e-12 <= high <= 1
    mirror = wilson(n - successes, n, level)
    assert (1 - mirror.high, 1 - mirror.low) == approx((low, high), abs=1e-9)
    wider = wilson(successes, n, 0.9995)
    assert wider.low <= low + 1e-12 and high <= wider.high + 1e-12


@pytest.mark.parametrize("wrong", [(-1, 3), (4, 3), (0, -1), (1, 2, 0.0), (1, 2, 1.0), (1, 2, 95)])
def test_wilson_wrong_input(wrong):
    with pytest.raises(ValueError, match="expected"):
        wilson(*wrong)


def test_mean_interval_by_hand():
    """(1, 2, 3): mean 2, s = 1, half width t/√3."""
    value, interval, n = mean_interval([1, 2, 3])
    assert (value, n) == (2, 3)
    assert interval == approx((2 - T2 / math.sqrt(3), 2 + T2 / math.sqrt(3)))


def test_the_width_grows_with_the_spread_and_the_level():
    """(2, 4, 6): s = 2. At 90 % with two degrees of freedom t = 2.919986."""
    _, interval, _ = mean_interval([2, 4, 6])
    assert interval == approx((4 - T2 * 2 / math.sqrt(3), 4 + T2 * 2 / math.sqrt(3)))
    _, narrower, _ = mean_interval([2, 4, 6], 0.9)
    assert narrower == approx((4 - 2.919986 * 2 / math.sqrt(3), 4 + 2.919986 * 2 / math.sqrt(3)))
    assert paired_difference([3, 6, 9], [1, 2, 3], 0.9).interval == approx(narrower)
    ratios = ratio_interval([math.e**2, math.e**4, math.e**6], [1, 1, 1], level=0.9).interval
    assert ratios == approx(tuple(map(math.exp, narrower)))


def test_mean_of_one_seed_has_no_interval():
    assert mean_interval([0.4]) == (0.4, None, 1)


@pytest.mark.parametrize("wrong", [[], [1.0, math.nan], [math.inf]])
def test_mean_wrong_input(wrong):
    with pytest.raises(ValueError, match="finite"):
        mean_interval(wrong)
    with pytest.raises(ValueError, match="level"):
        mean_interval([1, 2], 1.0)


def test_paired_difference_by_hand():
    """Differences (1, 2, 3), however far apart the pairs are."""
    assert paired_difference([11, 102, 1003], [10, 100, 1000]) == mean_interval([1, 2, 3])
    assert paired_difference([1, 2], [3, 5]).value == -2.5
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1, 2], [1])


def test_ratio_by_hand():
    """Ratios (e, e², e³): the logs are (1, 2, 3)."""
    e = math.e
    ratio = ratio_interval([2 * e, 3 * e**2, e**3], [2, 3, 1])
    assert ratio.value == approx(e**2)
    assert ratio.interval == approx((math.exp(2 - T2 / math.sqrt(3)), math.exp(2 + T2 / math.sqrt(3))))
    assert (ratio.n, ratio.at_least) == (3, False)


def test_censored_ratios_are_lower_bounds():
    """Value and low end as if the budget were the value, the high end unknown."""
    plain = ratio_interval([300, 200, 600], [100, 100, 100])
    ratio = ratio_interval([300, 200, 600], [100, 100, 100], censored=[False, False, True])
    assert ratio.at_least and not plain.at_least
    assert plain.interval is not None and ratio.interval is not None
    assert (ratio.value, ratio.interval.low) == (plain.value, plain.interval.low)
    assert ratio.interval.high == math.inf
    assert not ratio_interval([1.0], [2.0], censored=[False]).at_least
    assert ratio_interval([1.0], [2.0], censored=[True]) == (0.5, None, 1, True)


@given(st.lists(st.tuples(positive, positive), min_size=2, max_size=8))
def test_ratio_bounds(pairs):
    """Inside its interval, between the extremes, and inverted when the sides are swapped."""
    a, b = zip(*pairs, strict=True)
    ratio, swapped = ratio_interval(a, b), ratio_interval(b, a)
    each = [x / y for x, y in pairs]
    assert ratio.interval is not None and swapped.interval is not None
    assert min(each) * (1 - 1e-9) <= ratio.value <= max(each) * (1 + 1e-9)
    assert ratio.interval.low <= ratio.value * (1 + 1e-9) and ratio.value <= ratio.interval.high * (1 + 1e-9)
    assert swapped.value == approx(1 / ratio.value)


def test_ratio_wrong_input():
    for wrong in (([0], [1]), ([1], [0]), ([1], [-1]), ([math.nan], [1])):
        with pytest.raises(ValueError, match="positive"):
            ratio_interval(*wrong)
    for lengths in (([1, 2], [1], None), ([1], [1], [True, False])):
        with pytest.raises(ValueError, match="zip"):
            ratio_interval(lengths[0], lengths[1], censored=lengths[2])


def test_kappa_by_hand():
    """Yes/yes 20, yes/no 5, no/yes 10, no/no 15: pₒ = .7, pₑ = .5·.6 + .5·.4 = .5, κ = .4."""
    a = "y" * 25 + "n" * 25
    b = "y" * 20 + "n" * 5 + "y" * 10 + "n" * 15
    assert cohen_kappa(a, b) == approx(0.4)


def test_kappa_at_the_ends():
    assert cohen_kappa("abc", "abc") == 1
    assert cohen_kappa("ab", "ba") == -1
    assert cohen_kappa("aabb", "abab") == 0
    assert cohen_kappa("aaa", "aaa") is None
    assert cohen_kappa("aaa", "bbb") == 0
    for wrong in (("", ""), ("a", "ab")):
        with pytest.raises(ValueError):
            cohen_kappa(*wrong)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1))
def test_kappa_is_symmetric_and_bounded(pairs):
    a, b = zip(*pairs, strict=True)
    kappa = cohen_kappa(a, b)
    assert kappa == cohen_kappa(b, a)
    assert kappa is None or -1 - 1e-9 <= kappa <= 1 + 1e-9


@pytest.mark.parametrize(
    ("scores", "step"),
    [([0.0, 0.2, 0.6, 0.4], 40), ([0.0, 0.5, 0.5, 0.51], 60), ([0.9, 0, 0, 0], 0), ([0, 0, 0.5, 0], None)],
)
def test_steps_to_break(scores, step):
    assert steps_to_break([0, 20, 40, 60], scores, 0.5) == step


def test_steps_to_break_wrong_input():
    assert steps_to_break([], [], 0.5) is None
    for steps, scores in (([0, 20, 20], [0, 0, 0]), ([20, 0], [0, 0]), ([0, 20], [0])):
        with pytest.raises(ValueError):
            steps_to_break(steps, scores, 0.5)
