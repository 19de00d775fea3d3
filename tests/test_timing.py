"""Intervals of batch times: exact where that can be computed, and checked by simulation."""

import math

import numpy as np
import pytest
from scipy.stats import binom
from simulations import times

from medq import timing


@pytest.mark.parametrize("n", range(timing.ENOUGH, timing.BLOCKS + 1))
def test_the_interval_covers_at_least_as_often_as_stated_and_is_no_wider_than_it_must_be(n):
    low, high = timing.interval(np.arange(1, n + 1))  # values are their own ranks
    assert sum(binom.pmf(k, n, 0.5) for k in range(int(low), int(high))) >= 0.95
    assert sum(binom.pmf(k, n, 0.5) for k in range(int(low) + 1, int(high) - 1)) < 0.95


def test_small_samples_have_a_median_but_neither_an_interval_nor_a_tail():
    found = timing.summary([10.0] * 3 + [20.0] * 2, 32)
    assert found["p50_ms"] == 10 and found["mean_ms"] == 14 and found["n_batches"] == 5
    assert found["throughput"] == pytest.approx(32 / 0.014)
    assert all(math.isnan(found[name]) for name in ("p50_low", "p50_high", "p90_ms", "p99_ms"))
    assert all(math.isnan(v) for v in timing.interval(np.arange(timing.ENOUGH - 1)))
    value, low, high = timing.ratio([3.0] * 4, [1.0] * 400)
    assert value == 3 and math.isnan(low) and math.isnan(high)


@pytest.mark.parametrize("name", timing.TAILS)
def test_a_percentile_is_given_from_the_smallest_sample_that_can_hold_it(name):
    q, least = timing.TAILS[name]
    assert q ** (least - 1) > 0.025 >= q**least  # the largest value lies above the true quantile in 97.5 %
    few, enough = (timing.summary(np.arange(1.0, n + 1), 1) for n in (least - 1, least))
    assert math.isnan(few[f"{name}_ms"]) and enough[f"{name}_ms"] == np.quantile(np.arange(1.0, least + 1), q)


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.56, 0.92])
@pytest.mark.parametrize("drift", [0.0, 0.05])
def test_intervals_cover_the_truth_in_95_of_100_runs_of_dependent_batches(rho, drift):
    """Ratios hold their rate on a machine that drifts, too; milliseconds only on one that does not."""
    rng, ratios, medians, naive, runs = np.random.default_rng(0), 0, 0, 0, 2000
    for _ in range(runs):
        level = drift * rng.normal(size=timing.BLOCKS).cumsum()
        slow, fast = times(rng, rho, 2.0, level), times(rng, rho, 1.0, level)
        _, low, high = timing.ratio(slow, fast)
        ratios += low <= 2 <= high
        found, ordered = timing.summary(fast, 1), np.sort(fast)
        medians += found["p50_low"] <= 1 <= found["p50_high"]
        rank = int(binom.ppf(0.025, len(ordered), 0.5))
        naive += ordered[rank - 1] <= 1 <= ordered[-rank]
    assert 0.94 <= ratios / runs <= 0.98
    if drift == 0:
        assert 0.94 <= medians / runs <= 0.98
        assert rho < 0.9 or naive / runs < 0.6  # what independent batches would promise
