"""Kaplan–Meier by a textbook's numbers, and ratios of costs whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from inoculate.evals.survival import cost_ratio, kaplan_meier, median_cost

# 6-MP arm of Freireich et al. (1963), as in Kalbfleisch & Prentice, table 1.1: weeks, + is censored.
WEEKS = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
PLUS = [0, 0, 0, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1]


def test_the_textbook_s_curve():
    curve = kaplan_meier(WEEKS, list(map(bool, PLUS)))
    assert curve.times == (6, 7, 10, 13, 16, 22, 23) and curve.n == 21
    assert curve.surviving == pytest.approx([0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448], abs=6e-4)
    assert all(low < s < high for low, s, high in zip(curve.low, curve.surviving, curve.high, strict=True))
    # log(−log) band at 10 weeks: Greenwood's Σ is 0.0164, so S^exp(±1.96·0.128/log .753)
    assert (curve.low[2], curve.high[2]) == pytest.approx((0.503, 0.889), abs=2e-3)


def test_the_textbook_s_median():
    found = median_cost(WEEKS, list(map(bool, PLUS)))
    assert (found.value, found.n, found.broke) == (23, 21, 9)
    assert found.low == 13 and found.high is None


def test_without_censoring_the_median_is_the_median():
    assert median_cost([3, 1, 2], [False] * 3).value == 2
    assert median_cost([4, 1, 2, 3], [False] * 4).value == 2
    assert median_cost([5, 5, 5], [False] * 3).value == 5


def test_what_never_broke_has_no_median():
    found = median_cost([200, 200, 40], [True, True, False])
    assert found == (None, found.low, None, 3, 1)


def test_a_break_at_nothing_costs_nothing():
    assert median_cost([0, 0, 0], [False] * 3).value == 0


@pytest.mark.parametrize(
    ("costs", "flags"), [([], []), ([1.0], []), ([-1.0], [False]), ([float("nan")], [False]), ([float("inf")], [True])]
)
def test_what_is_no_cost_is_refused(costs, flags):
    with pytest.raises(ValueError, match="expected costs"):
        kaplan_meier(costs, flags)
    with pytest.raises(ValueError, match="level"):
        kaplan_meier([1.0], [False], level=1.0)


def arm(rng: np.random.Generator, median: float, seeds: int = 5, runs: int = 3, budget: float = 1e9):
    """Costs that vary by seed and by run, cut at a budget; and which seed each is of."""
    by_seed = np.repeat(rng.normal(0, 0.3, seeds), runs)
    costs = median * np.exp(by_seed + rng.normal(0, 0.2, seeds * runs))
    return (np.minimum(costs, budget).tolist(), (costs > budget).tolist()), np.repeat(np.arange(seeds), runs).tolist()


def test_a_model_against_itself_is_worth_nothing():
    """The interval holds 1 for at least nine of ten."""
    held = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        (ours, mine), (theirs, others) = arm(rng, 50), arm(rng, 50)
        found = cost_ratio(ours, theirs, (mine, others), resamples=400, seed=seed)
        assert found.low is not None and found.high is not None and found.value is not None
        held += found.low <= 1 <= found.high
    assert held >= 18


def test_a_known_ratio_is_found_and_clear_of_1():
    rng = np.random.default_rng(1)
    (ours, mine), (theirs, others) = arm(rng, 400), arm(rng, 50)
    found = cost_ratio(ours, theirs, (mine, others), resamples=400)
    assert found.low is not None and found.high is not None and found.value is not None
    assert 1 < found.low < 8 < found.high < 25 and not found.at_least
    turned = cost_ratio(theirs, ours, (others, mine), resamples=400)
    assert turned.value == pytest.approx(1 / found.value)


def test_what_held_out_is_a_lower_bound():
    rng = np.random.default_rng(1)
    (ours, mine), (theirs, others) = arm(rng, 4000, budget=200), arm(rng, 50)
    found = cost_ratio(ours, theirs, (mine, others), resamples=200)
    assert found.at_least and found.high is None and found.value is not None and found.low is not None
    assert found.value == pytest.approx(200 / median_cost(*theirs).value) and found.low > 1


def test_of_a_control_that_never_broke_nothing_is_said():
    assert cost_ratio(([50.0], [False]), ([200.0], [True])) == (None, None, None, False)
    assert cost_ratio(([50.0], [False]), ([0.0], [False])) == (None, None, None, False)


def test_clusters_widen_the_interval():
    """All the variance is between seeds: to draw runs alone would take fifteen runs for fifteen seeds."""
    seeds = np.repeat([10.0, 20.0, 40.0, 80.0, 160.0], 20)
    labels = np.repeat(np.arange(5), 20).tolist()
    ours, theirs = (seeds.tolist(), [False] * 100), ([10.0] * 100, [False] * 100)
    by_seed = cost_ratio(ours, theirs, (labels, labels), resamples=400)
    by_run = cost_ratio(ours, theirs, resamples=400)
    assert by_seed.high is not None and by_run.high is not None and by_seed.low is not None and by_run.low is not None
    assert by_seed.high / by_seed.low > by_run.high / by_run.low
