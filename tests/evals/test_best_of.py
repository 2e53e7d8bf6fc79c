"""Expected best of k trials, against all subsets."""

from __future__ import annotations

from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inoculate.evals.best_of import (
    chance_of_break,
    chance_of_break_curve,
    expected_best,
    expected_best_curve,
    trials_to_break,
)

VALUES = [0.2, 0.9, 0.1, 0.9, 0.5, 0.0]
BROKE = [False, True, False, False, True, False]


@pytest.mark.parametrize("k", range(1, 7))
def test_against_all_subsets(k):
    assert expected_best(VALUES, k) == pytest.approx(np.mean([max(some) for some in combinations(VALUES, k)]))
    assert chance_of_break(BROKE, k) == pytest.approx(np.mean([any(some) for some in combinations(BROKE, k)]))


def test_the_ends():
    assert expected_best(VALUES, 1) == pytest.approx(np.mean(VALUES)) and expected_best(VALUES, 6) == 0.9
    assert chance_of_break([False] * 4, 4) == 0 and chance_of_break([True], 1) == 1
    assert expected_best(np.linspace(0, 1, 2000).tolist(), 1000) == pytest.approx(1, abs=2e-3)  # no overflow


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.randoms())
def test_a_curve_grows_from_the_mean_to_the_best_in_any_order(values, random):
    ks = range(1, len(values) + 1)
    curve = expected_best_curve(values, ks)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert curve[0] == pytest.approx(np.mean(values), abs=slack) and curve[-1] == max(values)
    assert all(later >= earlier - slack for earlier, later in pairwise(curve))
    again = random.sample(values, len(values))
    assert [expected_best(again, k) for k in ks] == pytest.approx(curve, abs=slack)


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_the_chance_is_the_expected_best_of_0_and_1_and_adds_up_to_the_place(broke):
    """E[place of the first] = Σ_{k ≥ 0} P(none in k trials), when there is one."""
    ks = range(1, len(broke) + 1)
    chances = chance_of_break_curve(broke, ks)
    assert chances == pytest.approx(expected_best_curve(broke, ks), abs=1e-12)
    if any(broke):
        assert 1 + sum(1 - chance for chance in chances) == pytest.approx(trials_to_break(broke))


def test_many_trials_keep_their_digits():
    """All alike is what they are; one in a million in one trial; the maximum of 1 … N is k (N + 1)/(k + 1)."""
    assert expected_best([0.7] * 100_000, 50_000) == pytest.approx(0.7, rel=1e-14)
    assert chance_of_break([True] + [False] * 999_999, 1) == pytest.approx(1e-6, rel=1e-13, abs=0)
    assert expected_best(range(1, 10_001), 300) == pytest.approx(300 * 10_001 / 301, rel=1e-9)


def test_the_place_of_the_first_break():
    places = [order.index(True) + 1 for order in permutations(BROKE)]
    assert trials_to_break(BROKE) == pytest.approx(np.mean(places))
    assert trials_to_break([False, False]) is None


@pytest.mark.parametrize("k", [0, 7])
def test_more_trials_than_were_made_are_refused(k):
    with pytest.raises(ValueError, match="expected 1 ≤ k ≤ 6"):
        expected_best(VALUES, k)
    with pytest.raises(ValueError, match="expected 1 ≤ k ≤ 6"):
        chance_of_break(BROKE, k)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_is_refused(wrong):
    with pytest.raises(ValueError, match="finite"):
        expected_best([0.1, wrong], 1)
