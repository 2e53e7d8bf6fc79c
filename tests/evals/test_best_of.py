"""Expected best of k trials, against all subsets."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest

from inoculate.evals.best_of import chance_of_break, expected_best, trials_to_break

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


def test_the_place_of_the_first_break():
    places = [order.index(True) + 1 for order in permutations(BROKE)]
    assert trials_to_break(BROKE) == pytest.approx(np.mean(places))
    assert trials_to_break([False, False]) is None


@pytest.mark.parametrize("k", [0, 7])
def test_more_trials_than_were_made_are_refused(k):
    with pytest.raises(ValueError, match="expected 1 ≤ k ≤ 6"):
        expected_best(VALUES, k)
