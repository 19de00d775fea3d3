"""Statistics of batch times: medians, and intervals that allow for times that depend on each other.

Successive batches of a model are not independent: whatever slows one down slows down its neighbours. Intervals are
therefore taken over the medians of consecutive blocks, about as many as the turns in which `medq.latency` takes times.
"""

import math

import numpy as np
from scipy.stats import binom

BLOCKS = 20  # consecutive parts of a model's batch times
ENOUGH = 10  # blocks, and so batches, below which there is no interval
TAILS = {"p90": (0.9, 36), "p99": (0.99, 368)}  # quantile, and the batches below which it is not given


def interval(values):
    """95 % interval (low, high) of the median of independent `values` [n]; NaN for fewer than `ENOUGH`.

    The number of values below the true median is binomial(n, 1/2): each bound is the outermost rank that is missed with
    a probability of at most 2.5 %.
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    if len(ordered) < ENOUGH:
        return math.nan, math.nan
    rank = int(binom.ppf(0.025, len(ordered), 0.5))  # from 1
    return float(ordered[rank - 1]), float(ordered[-rank])


def block_medians(ms, n=BLOCKS):
    """The medians of (at most) `n` consecutive blocks of batch times `ms`."""
    return np.array([np.median(part) for part in np.array_split(np.asarray(ms, dtype=float), min(n, len(ms)))])


def ratio(slow, fast):
    """(value, low, high): the median batch time of `slow` over that of `fast`, both arrays of batch times.

    The interval is that of the ratios of simultaneous blocks, from which a drift of the machine cancels.
    """
    n = min(BLOCKS, len(slow), len(fast))
    return float(np.median(slow) / np.median(fast)), *interval(block_medians(slow, n) / block_medians(fast, n))


def summary(ms, batch_size):
    """Batch times `ms` in numbers: n_batches, mean_ms, throughput (images per second), percentiles and the median's bounds.

    p90 and p99 are NaN for samples that are too small to hold them, and have no interval.
    """
    ms = np.asarray(ms, dtype=float)
    found = {"n_batches": len(ms), "mean_ms": ms.mean(), "throughput": 1000 * batch_size / ms.mean()}
    found["p50_ms"] = np.median(ms)
    found["p50_low"], found["p50_high"] = interval(block_medians(ms))
    for name, (q, least) in TAILS.items():
        found[f"{name}_ms"] = np.quantile(ms, q) if len(ms) >= least else math.nan
    return {name: value if name == "n_batches" else float(value) for name, value in found.items()}
