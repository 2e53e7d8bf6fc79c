"""The two-way bootstrap: closed forms, pairing, and how often it covers the truth."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from inoculate.evals.bootstrap import bootstrap_difference, bootstrap_rate


def test_the_value_is_the_mean_and_certainty_has_no_width():
    found = bootstrap_rate([[True, False, True, True], [True, False, False, True]])
    assert found.value == pytest.approx(5 / 8) and found.n == 4
    sure = bootstrap_rate([[True] * 10] * 3)
    assert sure.value == 1 and sure.interval == (1.0, 1.0)


SEEN = np.array([[1, 0, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
OTHER = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 1]])


def means(rows: int, x: np.ndarray) -> dict[tuple, float]:
    """The mean under each of the equally likely draws of `rows` seeds and of as many prompts as there are."""
    of_prompts = list(product(range(x.shape[1]), repeat=x.shape[1]))
    return {(r, c): x[np.ix_(r, c)].mean() for r in product(range(rows), repeat=rows) for c in of_prompts}


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_against_all_resamples(level):
    """A rate; a difference in which seeds and prompts are drawn once for both; one in which only prompts are."""
    ends = (1 - level) / 2, (1 + level) / 2
    a, b, fewer = means(3, SEEN), means(3, OTHER), means(2, OTHER)
    found = bootstrap_rate(SEEN.tolist(), level, resamples=100_000)
    assert found.interval == pytest.approx(np.quantile(list(a.values()), ends))
    paired = bootstrap_difference(SEEN.tolist(), OTHER.tolist(), level, resamples=100_000)
    assert paired.interval == pytest.approx(np.quantile([a[draw] - b[draw] for draw in a], ends))
    apart = bootstrap_difference(SEEN.tolist(), OTHER[:2].tolist(), level, resamples=100_000)
    draws = [mean - other for (_, c), mean in a.items() for (_, d), other in fewer.items() if c == d]
    assert apart.interval == pytest.approx(np.quantile(draws, ends))


def test_unequal_numbers_of_seeds_are_drawn_apart():
    """Only seeds vary: the variances of 5 of 10 and of 4 of 9 add up."""
    a, b = [[True]] * 5 + [[False]] * 5, [[True]] * 4 + [[False]] * 5
    half = 1.96 * np.sqrt(0.25 / 10 + 20 / 81 / 9)
    found = bootstrap_difference(a, b, resamples=20_000)
    assert found.interval == pytest.approx((found.value - half, found.value + half), abs=0.03)


def test_the_same_seed_is_the_same_interval():
    assert bootstrap_rate(SEEN.tolist(), resamples=50) == bootstrap_rate(SEEN.tolist(), resamples=50)
    assert bootstrap_rate(SEEN.tolist(), resamples=50) != bootstrap_rate(SEEN.tolist(), resamples=50, seed=1)


def test_one_seed_is_the_plain_bootstrap_of_prompts():
    x = [[True] * 30 + [False] * 70]
    found = bootstrap_rate(x, resamples=20_000)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 100)
    assert found.interval == pytest.approx((0.3 - half, 0.3 + half), abs=0.012)


def test_seeds_that_disagree_widen_it():
    alike = bootstrap_rate([[True, False] * 50] * 4)
    apart = bootstrap_rate([[True] * 100, [True] * 100, [False] * 100, [False] * 100])
    assert alike.value == apart.value == 0.5 and alike.interval is not None and apart.interval is not None
    assert apart.interval.high - apart.interval.low > 3 * (alike.interval.high - alike.interval.low)


def test_a_model_against_itself_differs_by_nothing():
    rng = np.random.default_rng(0)
    x = (rng.random((3, 50)) < 0.4).tolist()
    assert bootstrap_difference(x, x).interval == (0.0, 0.0)


def test_pairing_uses_that_prompts_are_the_same():
    rng = np.random.default_rng(0)
    hard = rng.random(200)
    a, b = (hard < 0.5)[None].tolist(), (hard < 0.45)[None].tolist()
    paired = bootstrap_difference(a, b)
    assert paired.value == pytest.approx(np.mean(a) - np.mean(b)) and paired.interval is not None
    assert paired.interval.low > 0 and paired.interval.high < 0.12
    rate = bootstrap_rate(a).interval
    assert rate is not None and rate.high - rate.low > paired.interval.high - paired.interval.low


def test_numbers_of_seeds_may_differ_and_of_prompts_not():
    assert bootstrap_difference([[True, False]] * 3, [[True, False]]).value == 0
    with pytest.raises(ValueError, match="same prompts"):
        bootstrap_difference([[True, False]], [[True]])
    for wrong in ([], [[]], [[True], [True, False]]):
        with pytest.raises(ValueError, match="for each seed"):
            bootstrap_rate(wrong)
    for level in (0, 1):
        with pytest.raises(ValueError, match="level"):
            bootstrap_rate([[True]], level=level)
    for few in (0, -1):
        with pytest.raises(ValueError, match="one resample"):
            bootstrap_rate([[True]], resamples=few)


def test_it_covers_the_truth():
    """Seeds and prompts both matter: logit = a seed's part + a prompt's part."""
    truth = float(np.mean(1 / (1 + np.exp(-np.random.default_rng(9).normal(0, np.sqrt(0.5**2 + 1), 10**6)))))
    covered = 0
    for i in range(150):
        rng = np.random.default_rng(i)
        logits = rng.normal(0, 0.5, (8, 1)) + rng.normal(0, 1, (1, 80))
        found = bootstrap_rate((rng.random((8, 80)) < 1 / (1 + np.exp(-logits))).tolist(), resamples=400, seed=i)
        assert found.interval is not None
        covered += found.interval.low <= truth <= found.interval.high
    assert covered >= 135
