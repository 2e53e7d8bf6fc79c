"""Kaplan–Meier by a textbook's numbers, and ratios of costs whose answer is known."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from inoculate.evals.survival import cost_ratio, kaplan_meier, median_cost

# 6-MP arm of Freireich et al. (1963), as in Kalbfleisch & Prentice, table 1.1: weeks, + is censored.
WEEKS = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
PLUS = [0, 0, 0, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1]


def test_the_textbook_s_curve():
    curve = kaplan_meier(WEEKS, list(map(bool, PLUS)))
    assert curve.times == (6, 7, 10, 13, 16, 22, 23) and curve.n == 21
    assert curve.at_risk == (21, 17, 15, 12, 11, 7, 6) and curve.broke == (3, 1, 1, 1, 1, 1, 1)
    assert curve.surviving == pytest.approx([0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448], abs=6e-4)
    assert all(low < s < high for low, s, high in zip(curve.low, curve.surviving, curve.high, strict=True))
    # log(−log) band at 10 weeks: Greenwood's Σ is 0.0164, so S^exp(±1.96·0.128/log .753)
    assert (curve.low[2], curve.high[2]) == pytest.approx((0.503, 0.889), abs=2e-3)


def test_the_textbook_s_median():
    found = median_cost(WEEKS, list(map(bool, PLUS)))
    assert (found.value, found.n, found.broke) == (23, 21, 9)
    assert found.low == 13 and found.high is None


runs = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40)


def exact(of_runs: list[tuple[int, bool]]) -> dict[int, Fraction]:
    """Kaplan–Meier in fractions: censored at a time are at risk at that time."""
    s, curve = Fraction(1), {}
    for time in sorted({cost for cost, censored in of_runs if not censored}):
        at_risk = sum(cost >= time for cost, _ in of_runs)
        s *= 1 - Fraction(of_runs.count((time, False)), at_risk)
        curve[time] = s
    return curve


def exact_median(of_runs: list[tuple[int, bool]]) -> float:
    return next((time for time, s in exact(of_runs).items() if 2 * s <= 1), math.inf)


@given(runs)
def test_against_fractions(of_runs):
    """A half that is exactly a half counts, however floating point rounds it."""
    costs, censored = zip(*of_runs, strict=True)
    curve, median = kaplan_meier(costs, censored), median_cost(costs, censored)
    assert dict(zip(curve.times, curve.surviving, strict=True)) == pytest.approx(exact(of_runs))
    assert (math.inf if median.value is None else median.value) == exact_median(of_runs)
    assert median.broke == sum(curve.broke) == len(of_runs) - sum(censored)
    for low, s, high in zip(curve.low, curve.surviving, curve.high, strict=True):
        assert 0 <= low <= s < high <= 1 and (s == 0 or low < s)
    assert 0 not in curve.surviving[1:] or curve.high[-1] <= curve.high[-2]


@given(runs, st.sampled_from([0.5, 0.8]))
def test_a_lower_level_is_narrower_and_units_do_not_matter(of_runs, level):
    costs, censored = zip(*of_runs, strict=True)
    wide, narrow = kaplan_meier(costs, censored), kaplan_meier(costs, censored, level)
    assert all(a <= b for a, b in zip(wide.low, narrow.low, strict=True))
    assert all(a >= b for a, b in zip(wide.high, narrow.high, strict=True))
    scaled = median_cost([1000.0 * cost for cost in costs], censored)
    assert scaled[:3] == tuple(end if end is None else 1000 * end for end in median_cost(costs, censored)[:3])


def test_halves_that_floating_point_rounds_up():
    """The 12th of 24: the product of 23/24, 22/23, … is 0.5 on paper."""
    for n in range(2, 200, 2):
        assert median_cost(range(1, n + 1), [False] * n).value == n // 2
        once = list(range(1, n + 1)), [False] * n
        assert cost_ratio(once, ([1.0], [False]), resamples=1).value == n // 2


def test_without_censoring_the_median_is_the_median():
    assert median_cost([3, 1, 2], [False] * 3).value == 2
    assert median_cost([4, 1, 2, 3], [False] * 4).value == 2
    assert median_cost([5, 5, 5], [False] * 3).value == 5


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("n", range(1, 12))
def test_few_runs_say_little_however_alike(n, level):
    """All n break at 5: the ends of the sign test. Were 5 not the median, the chance of that would be 2⁻ⁿ at most."""
    known = 2.0**-n <= (1 - level) / 2
    found = median_cost([5.0] * n, [False] * n, level)
    assert found[:3] == ((5, 5, 5) if known else (5, 0, None))
    assert kaplan_meier([5.0] * n, [False] * n, level).high[0] == pytest.approx(1 - ((1 - level) / 2) ** (1 / n))


def test_what_was_cut_off_before_the_first_break_says_nothing_of_it():
    """Of eight, four were cut off at 1: four that held until 5 are few. Ten that never broke are not; three are."""
    assert median_cost([1.0] * 4 + [5.0] * 4, [True] * 4 + [False] * 4)[:2] == (5, 0)
    assert median_cost([200.0] * 10, [True] * 10)[:3] == (None, None, None)
    assert median_cost([200.0] * 3, [True] * 3)[:3] == (None, 0, None)


def test_the_end_of_a_curve_counts_those_cut_off_before():
    """Of 4, one is cut off at 1; at 2 one of 3 breaks, at 3 the other two: 2 at risk over S = ⅔ count as 3."""
    curve = kaplan_meier([1, 2, 3, 3], [True, False, False, False], level=0.5)
    assert curve.surviving == pytest.approx([2 / 3, 0]) and curve.low[1] == 0
    assert curve.high[1] == pytest.approx(1 - 0.25 ** (1 / 3))


@pytest.mark.parametrize(("n", "budget"), [(1, 9), (3, 9), (6, 9), (6, 1.2), (12, 1.2), (30, 1.2)])
def test_the_interval_holds_the_median(n, budget):
    """Costs with median log 2, cut at a budget: at least 92 % of 500 intervals at 95 %."""
    held, rng = 0, np.random.default_rng(n)
    for costs in rng.exponential(1, (500, n)):
        found = median_cost(np.minimum(costs, budget).tolist(), (costs > budget).tolist())
        low, high = budget if found.low is None else found.low, math.inf if found.high is None else found.high
        held += low <= math.log(2) <= high
    assert held >= 460


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
    assert 1 < found.low < 8 < found.high < 50 and not found.at_least
    turned = cost_ratio(theirs, ours, (others, mine), resamples=400)
    assert turned.value == pytest.approx(1 / found.value)


def test_what_held_out_is_a_lower_bound():
    rng = np.random.default_rng(1)
    (ours, mine), (theirs, others) = arm(rng, 4000, budget=200), arm(rng, 50)
    found = cost_ratio(ours, theirs, (mine, others), resamples=200)
    assert found.at_least and found.high is None and found.value is not None and found.low is not None
    assert found.value == pytest.approx(200 / median_cost(*theirs).value) and found.low > 1


def test_clusters_that_all_held_do_not_disagree():
    """Controls of 3, 24 and 4 steps, ours above 200 in each: at least 8.3 times all three, though 67, 8.3 and 50 differ."""
    seeds = [1, 2, 3]
    ours, theirs = ([200.0] * 3, [True] * 3), ([3.0, 24, 4], [False] * 3)
    found = cost_ratio(ours, theirs, (seeds, seeds))
    assert found.value == 50 and found.at_least and found.high is None
    assert found.low == pytest.approx(stretched(200 / 24, 200 / 24 / 1.3, 3, 0.95))
    early = cost_ratio(([200.0, 200, 6], [True, True, False]), theirs, (seeds, seeds))
    assert early.value == 50 and early.low is not None and early.low < 1, "one that broke after 1.5 times the control"
    never = cost_ratio(ours, ([3.0, 24, 200], [False, False, True]), (seeds, seeds))
    assert never.low == 0, "a control that held says nothing of a multiple of it"


def stretched(value: float, end: float, n: int, level: float) -> float:
    """An end of an interval of n clusters, further from the value than its percentile."""
    longer = stats.t(n - 1).ppf((1 + level) / 2) / stats.norm.ppf((1 + level) / 2) * math.sqrt(n / (n - 1))
    return value * (end / value) ** longer if 0 < end < math.inf else end


def test_three_seeds_reach_further_than_their_extremes():
    """Ratios of 1, 2 and 4: percentiles end at 1 and 4; Student's t of two degrees asks for 2.689 times as far."""
    seeds = ["a", "b", "c"]
    found = cost_ratio(([10.0, 40, 160], [False] * 3), ([10.0, 20, 40], [False] * 3), (seeds, seeds))
    longer = 4.302653 / 1.959964 * math.sqrt(3 / 2)
    assert found.value == 2 and longer == pytest.approx(2.6887, abs=1e-4)
    assert (found.low, found.high) == pytest.approx((2 / 2**longer, 2 * 2**longer), rel=1e-4)


def test_one_seed_or_two_have_no_interval_however_many_runs():
    for seeds in ([1] * 9, [1] * 4 + [2] * 5):
        found = cost_ratio(([40.0] * 9, [False] * 9), ([20.0] * 9, [False] * 9), (seeds, seeds))
        assert found == (2, 0, None, False)


def test_a_ratio_of_0_keeps_its_percentiles():
    """Broken before the first step in two of three seeds."""
    seeds = ["a", "b", "c"]
    found = cost_ratio(([0.0, 0, 8], [False] * 3), ([8.0, 8, 8], [False] * 3), (seeds, seeds))
    assert found == (0, 0, 1, False)


def exact_interval(ours, theirs, level):
    """The bootstrap's interval over all equally likely resamples, each bounding the ratio from both sides."""
    least, most = [], []
    for mine in product(ours, repeat=len(ours)):
        for other in product(theirs, repeat=len(theirs)):
            a, b = exact_median(list(mine)), exact_median(list(other))
            said = 0 < b < math.inf
            least.append(min(a, max(cost for cost, _ in mine)) / b if said else 0)
            most.append(a / b if said else 0 if b and a < math.inf else math.inf)
    ends = (1 - level) / 2, (1 + level) / 2
    return [sorted(of)[math.ceil(len(of) * end) - 1] for of, end in zip((least, most), ends, strict=True)]


@pytest.mark.parametrize("level", [0.6, 0.7])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([(40, False), (60, False), (90, False)], [(5, False), (10, False), (30, False)]),
        ([(40, False), (90, True), (90, True)], [(5, False), (10, False), (30, False)]),
        ([(90, True), (80, True), (90, True)], [(5, False), (10, False), (30, False)]),
        ([(40, False), (60, False), (90, False)], [(5, False), (10, False), (90, True)]),
        ([(40, False), (90, True), (90, True)], [(5, False), (10, False), (90, True)]),
        ([(40, False), (60, False), (90, True)], [(5, False), (10, False), (90, True)]),
        ([(90, True), (90, True), (90, True)], [(5, False), (10, False), (90, True)]),
        ([(40, False), (60, False), (90, False)], [(0, False), (10, False), (30, False)]),
    ],
)
def test_against_all_resamples(ours, theirs, level):
    arms = [tuple(map(list, zip(*arm, strict=True))) for arm in (ours, theirs)]
    found = cost_ratio(arms[0], arms[1], level=level, resamples=20_000, resolution=1)
    low, high = exact_interval(ours, theirs, level)
    middle = exact_median(theirs)
    if 0 < middle < math.inf:
        value = min(exact_median(ours), max(cost for cost, _ in ours)) / middle
        low, high = (stretched(value, end, 3, level) for end in (low, high))
    assert (found.low, math.inf if found.high is None else found.high) == pytest.approx((low, high))
    assert found.at_least == (exact_median(ours) == math.inf)


def test_what_never_broke_is_as_sure_as_what_it_is_compared_with():
    """Ours held for 200 in each run, but theirs broke at 10 to 50: the low end is not the value."""
    found = cost_ratio(([200.0] * 5, [True] * 5), ([10.0, 20, 30, 40, 50], [False] * 5))
    assert found.value == 200 / 30 and found.at_least and found.high is None
    assert found.low == pytest.approx(stretched(200 / 30, 200 / 50, 5, 0.95))


def test_shared_seeds_are_drawn_together():
    """Ours is four times theirs in every seed: paired, that is certain, whatever order the runs are in."""
    theirs = [10.0, 20, 40, 80, 160]
    ours, seeds = [4 * cost for cost in reversed(theirs)], [1, 2, 3, 4, 5]
    arms = (ours, [False] * 5), (theirs, [False] * 5)
    paired = cost_ratio(*arms, (seeds[::-1], seeds), resolution=1)
    assert paired == pytest.approx((4, 4, 4, False))
    within = cost_ratio(*arms, (seeds[::-1], seeds), resolution=1.5)
    assert within.low == pytest.approx(4 * stretched(1, 1 / 1.5, 5, 0.95)) and within.high == pytest.approx(
        16 / within.low
    )
    apart = cost_ratio(*arms, ([f"other {s}" for s in seeds], seeds))
    assert apart.low is not None and apart.high is not None and apart.low < 2 and apart.high > 8


def test_a_seed_brings_all_its_runs():
    """Seed a has three runs at 100, b and c one at 10. Only where a is not drawn, in 8 of 27, the median is 10."""
    arms = ([100.0, 100, 100, 10, 10], [False] * 5), ([1.0] * 3, [False] * 3)
    found = [cost_ratio(*arms, ("aaabc", "def"), level=level, resolution=1).low for level in (0.36, 0.46)]
    assert found == [pytest.approx(100), pytest.approx(stretched(100, 10, 3, 0.46))]


@pytest.mark.parametrize(
    "wrong", [{"level": 0}, {"level": 1}, {"resamples": 0}, {"resolution": 0.9}, {"clusters": ([1, 2], [1])}]
)
def test_a_ratio_of_what_does_not_fit_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        cost_ratio(([1.0], [False]), ([1.0], [False]), **wrong)


def test_of_a_control_that_never_broke_nothing_is_said():
    assert cost_ratio(([50.0], [False]), ([200.0], [True])) == (None, None, None, False)
    assert cost_ratio(([50.0], [False]), ([0.0], [False])) == (None, None, None, False)


def test_where_the_control_holds_and_ours_does_not_it_speaks_against_the_defense():
    """Theirs is not reached where the seed that held is drawn twice or more, in 7 of 27; the ratio is 0 there, not 1."""
    theirs, ours = ([10.0, 10, 200], [False, False, True]), ([1.0] * 3, [False] * 3)
    found = cost_ratio(ours, theirs, resolution=1)
    assert (found.value, found.low) == (0.1, 0.0) and found.high == pytest.approx(0.1)


def test_clusters_widen_the_interval():
    """All the variance is between seeds: to draw runs alone would take fifteen runs for fifteen seeds."""
    seeds = np.repeat([10.0, 20.0, 40.0, 80.0, 160.0], 20)
    labels = np.repeat(np.arange(5), 20).tolist()
    ours, theirs = (seeds.tolist(), [False] * 100), ([10.0] * 100, [False] * 100)
    by_seed = cost_ratio(ours, theirs, (labels, labels), resamples=400)
    by_run = cost_ratio(ours, theirs, resamples=400)
    assert by_seed.high is not None and by_run.high is not None and by_seed.low is not None and by_run.low is not None
    assert by_seed.high / by_seed.low > by_run.high / by_run.low
