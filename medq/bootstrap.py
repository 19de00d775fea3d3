"""Paired bootstrap (section 3.5, equations 1 to 3), intervals for single models, and Holm's correction.

A resample draws n images with replacement. With `groups` (lesions) it draws as many groups as there are,
with replacement, and all images of a group come along as often as the group is drawn. Both methods, and all
backbones of a pooled comparison, are evaluated on the same resamples. These depend on `seed` and on the
number of images (or the groups) alone: not on threads, metric or models; a longer run begins with the
resamples of a shorter one.

**How it is fast.** A resample is held as how often each image is in it. Images are sorted once per class; a
compiled kernel then sweeps them, adding up counts for LANES resamples side by side. Every metric but
`ece_adaptive` goes this way. Its bins move with the resample, so it is evaluated on one resample after the
other, some hundred times slower.

**A class absent from a resample** has no AUPRC (and no AUROC) in it: NaN for the class, and the macro mean
is over the classes present, which are the same for both methods. Replicates that are NaN altogether are left
out of percentiles and p-values; `n_defined` says how many remain. If none does, the results are NaN.

Compiled kernels are cached beside this file, or in the user's cache folder if that is read-only; the
environment variable NUMBA_CACHE_DIR names another place. Where none can be written each process compiles
anew (two seconds).
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numba
import numpy as np

from medq import metrics as m

LANES = 64  # resamples that a kernel handles side by side, and that share one random stream
LEVEL = 0.95
DRAWN_AT_ONCE = 2**20  # images; bounds the memory of a draw
# A resample is noisier than the sample, and these rise with noise: `interval` moves their percentiles.
RECENTRED = ("ece", "ece_top_label", "ece_adaptive", "brier_calibration", "brier_refinement")


@dataclass(frozen=True)
class PairedDifference:
    """Method A minus method B, in percentage points: 100 x the metric's own unit.

    `delta` is the point estimate on the images themselves, `low` and `high` the percentile interval
    (equation 2), `p_value` equation 3, `replicates` [n_resamples] the differences of equation 1. Two methods
    that agree on every resample get p = 0 from equation 3, as no replicate lies below 0. `p_conservative` is
    the same test with ties on both sides and one added to each count and to B: then never 0, and 1 for such
    methods. `bias` is mean(replicates) - delta: about 0, except for calibration errors (RECENTRED), whose
    noise hides part of a difference; their intervals and p-values then err towards no difference.
    """

    metric: str
    delta: float
    low: float
    high: float
    p_value: float
    p_conservative: float
    bias: float
    n_defined: int
    replicates: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Interval:
    """A metric and its interval, in the metric's own unit; `bias` is mean(replicates) - value."""

    metric: str
    value: float
    low: float
    high: float
    bias: float
    n_defined: int
    replicates: np.ndarray = field(repr=False)


def paired_auprc(y_true, prob_a, prob_b, *, n_resamples=10_000, groups=None, seed=42, threads=None):
    """Paired bootstrap of macro AUPRC, method A minus B (section 3.5, equations 1 to 3): see `paired`."""
    return paired(y_true, prob_a, prob_b, "auprc", n_resamples=n_resamples, groups=groups, seed=seed, threads=threads)


def paired(y_true, prob_a, prob_b, metric="auprc", *, n_resamples=10_000, groups=None, seed=42, threads=None):
    """Paired bootstrap of any metric of `medq.metrics.METRICS`: a PairedDifference, in percentage points.

    `y_true` [n]; `prob_a` and `prob_b` [n, classes], or a sequence of such arrays each (backbones, in the
    same order): these are pooled, as the mean difference over the pairs on the same resamples. `groups` [n]:
    what to resample instead of images. `threads`: all processors without it. Raises ValueError for what
    `medq.metrics.validate` refuses, sequences of unequal length, missing groups, an unknown metric, and numbers
    of resamples or threads below 1.
    """
    first, second = _as_models(prob_a), _as_models(prob_b)
    if len(first) != len(second):
        raise ValueError(f"prob_a holds {len(first)} models and prob_b {len(second)}, but they go in pairs.")
    values, points = _evaluate(
        y_true, first + second, metric, n_resamples=n_resamples, groups=groups, seed=seed, threads=threads
    )
    pairs = len(first)
    return difference(metric, values[:, :pairs], values[:, pairs:], points[:pairs], points[pairs:])


def difference(metric, values_a, values_b, points_a, points_b):
    """The PairedDifference of replicates [n_resamples, pairs] and values [pairs] that are at hand already.

    For whoever compares many pairs of the same models: `replicates` and `medq.metrics.combine` give both.
    """
    # pair by pair, so that equal methods differ by exactly 0
    differences = 100 * (values_a - values_b).mean(axis=1)
    delta = float(100 * (points_a - points_b).mean())
    defined = differences[~np.isnan(differences)]
    low, high = _percentiles(defined)
    return PairedDifference(
        metric,
        delta,
        low,
        high,
        _p_value(defined),
        _p_conservative(defined),
        _bias(defined, delta),
        len(defined),
        differences,
    )


def interval(y_true, y_prob, metric="auprc", *, n_resamples=10_000, groups=None, seed=42, threads=None):
    """95 % bootstrap interval of a metric of one model [n, classes], or of its mean over several models.

    Its ends are percentiles of the replicates, for calibration errors (RECENTRED) moved by -bias and not
    below 0. An ECE rises with noise and a resample is noisier than the sample, so that the value of a
    well-calibrated model lies below all its replicates. What is shown is the spread of the estimate at this
    number of images; its own bias remains, so compare calibration errors on the same images only. Other
    arguments as in `paired`.
    """
    values, points = _evaluate(
        y_true, _as_models(y_prob), metric, n_resamples=n_resamples, groups=groups, seed=seed, threads=threads
    )
    return percentile_interval(metric, float(points.mean()), values.mean(axis=1))


def intervals(y_true, models, metrics=None, *, classes=None, n_resamples=10_000, groups=None, seed=42, threads=None):
    """Intervals of many metrics and models on the same resamples, as tidy rows.

    `models`: {backbone: probabilities [n, classes]}; `metrics`: names, without it all but the slow
    `ece_adaptive`. Returns a DataFrame with backbone, metric, class (empty for the macro value), value, low,
    high, between_std: for each backbone, and for `mean`, the mean over backbones; `between_std` is the
    standard deviation between the backbones' values (n - 1), given beside `mean` only. Class rows as in
    `medq.metrics.per_class`. Raises ValueError for what `paired` refuses, and for a backbone named `mean`.
    """
    import pandas as pd

    if not isinstance(models, Mapping):
        raise ValueError(f"models must map names to probabilities, but is a {type(models).__name__}.")
    if "mean" in models:
        raise ValueError("models holds the name 'mean', which is that of the mean over models; choose another name.")
    metrics = list(PLANS) if metrics is None else list(metrics)
    values = replicates(
        y_true, models.values(), metrics, n_resamples=n_resamples, groups=groups, seed=seed, threads=threads
    )
    labels, probs = _validate(y_true, models.values())
    names = m.class_names(classes, probs[0])
    rows = []
    for metric in metrics:
        points = np.array([m.COLUMNS[metric](labels, p) for p in probs])
        parts = [("", m.combine(metric, points), m.combine(metric, values[metric]))]
        if metric in m.PER_CLASS:
            parts += [(name, points[:, c], values[metric][:, :, c]) for c, name in enumerate(names)]
        for name, point, replicate in parts:
            spread = float(np.std(point, ddof=1)) if len(point) > 1 else np.nan
            found = [
                (backbone, percentile_interval(metric, float(point[k]), replicate[:, k]), np.nan)
                for k, backbone in enumerate(models)
            ]
            mean = percentile_interval(metric, float(point.mean()), replicate.mean(axis=1))
            found.append(("mean", mean, spread))
            rows += [(backbone, metric, name, i.value, i.low, i.high, std) for backbone, i, std in found]
    return pd.DataFrame(rows, columns=["backbone", "metric", "class", "value", "low", "high", "between_std"])


def holm(p_values):
    """Holm's step-down correction over a family of comparisons: adjusted p-values in the order given.

    NaN (a comparison that could not be made) stays NaN and does not count in the family. Raises ValueError for what
    is not a list of probabilities.
    """
    p_values = m.array("p_values", p_values).astype(np.float64)
    if p_values.ndim != 1:
        raise ValueError(f"p_values must be a list of numbers, but has shape {p_values.shape}.")
    if ((p_values < 0) | (p_values > 1)).any():
        raise ValueError(f"p_values must lie in 0 .. 1, but run from {np.nanmin(p_values)} to {np.nanmax(p_values)}.")
    adjusted, family = np.full(p_values.shape, np.nan), np.flatnonzero(~np.isnan(p_values))
    order = family[np.argsort(p_values[family], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def replicates(y_true, models, metrics, *, n_resamples=10_000, groups=None, seed=42, threads=None):
    """Metrics of several models [n, classes] on the same resamples: {metric: [n_resamples, models, columns]}.

    Columns are classes, or one for a metric without values per class; `medq.metrics.combine` makes one
    number of them. The other functions here are built on this one.
    """
    labels, models = _validate(y_true, models)
    if threads is not None:
        m.check_count("threads", threads)
    plans = {m.known_metric(metric): [_plan(metric, labels, probs) for probs in models] for metric in metrics}
    draw, n_chunks = _drawing(len(labels), n_resamples, groups, seed)
    classes = models[0].shape[1]
    values = {
        metric: np.empty((n_chunks * LANES, len(models), classes if metric in m.PER_CLASS else 1)) for metric in plans
    }

    def work(chunk):
        counts = draw(chunk)
        totals = counts.sum(axis=0, dtype=np.float64)
        for metric, evaluations in plans.items():
            for k, evaluate in enumerate(evaluations):
                values[metric][chunk * LANES : (chunk + 1) * LANES, k] = evaluate(counts, totals).T

    # kernels and draws release the interpreter lock
    with ThreadPoolExecutor(threads or _processors()) as pool:
        list(pool.map(work, range(n_chunks)))
    return {metric: array[:n_resamples] for metric, array in values.items()}


def resample_counts(n, n_resamples, *, groups=None, seed=42):
    """The resamples that all functions here use, one by one: how often each image is in it, uint8 [n]."""
    m.check_count("n", n)
    draw, n_chunks = _drawing(n, n_resamples, groups, seed)
    return (counts for chunk in range(n_chunks) for counts in draw(chunk).T[: n_resamples - chunk * LANES])


def _as_models(y_prob):
    """A list of arrays from one array [n, classes] or a sequence of them."""
    if isinstance(y_prob, (list, tuple)):
        return list(y_prob) if not y_prob or m.array("y_prob", y_prob[0]).ndim == 2 else [y_prob]
    return list(y_prob) if np.ndim(y_prob) == 3 else [y_prob]


def _validate(y_true, models):
    checked = [m.validate(y_true, probs) for probs in models]
    if not checked:
        raise ValueError("no model was given: y_prob must hold at least one array of probabilities.")
    shapes = {probs.shape for _, probs in checked}
    if len(shapes) > 1:
        raise ValueError(f"the models' probabilities differ in shape: {', '.join(map(str, sorted(shapes)))}.")
    return checked[0][0], [probs for _, probs in checked]


def _evaluate(y_true, models, metric, **options):
    """Replicates [n_resamples, models] and values [models] of one metric."""
    labels, models = _validate(y_true, models)
    values = replicates(labels, models, [metric], **options)[metric]
    points = np.array([m.combine(metric, m.COLUMNS[metric](labels, probs)) for probs in models])
    return m.combine(metric, values), points


def percentile_interval(metric, value, replicate):
    """The Interval of a value whose replicates [n_resamples] are at hand already, as `interval` gives it."""
    defined = replicate[~np.isnan(replicate)]
    low, high = _percentiles(defined)
    bias = _bias(defined, value)
    if metric in RECENTRED:
        low, high = np.maximum(low - bias, 0.0), np.maximum(high - bias, 0.0)
    return Interval(metric, value, float(low), float(high), bias, len(defined), replicate)


def _bias(defined, value):
    return float(defined.mean() - value) if len(defined) else np.nan


def _percentiles(defined):
    if not len(defined):
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _p_value(defined):
    """Equation 3."""
    if not len(defined):
        return np.nan
    return min(1.0, 2 * min(float(np.mean(defined >= 0)), float(np.mean(defined < 0))))


def _p_conservative(defined):
    if not len(defined):
        return np.nan
    extreme = min(np.sum(defined >= 0), np.sum(defined <= 0))
    return min(1.0, 2 * (1 + float(extreme)) / (1 + len(defined)))


def _processors():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Draws


def _drawing(n, n_resamples, groups, seed):
    """A function chunk -> counts uint8 [n, LANES], and the number of chunks.

    A count above 255 would need an image drawn 256 times in n draws: its probability is below n / 256!.
    """
    m.check_count("n_resamples", n_resamples)
    try:
        np.random.SeedSequence(seed)
    except (TypeError, ValueError):
        raise ValueError(f"seed must be a whole number from 0 up, but is {seed!r}.") from None
    member = None if groups is None else _group_numbers(groups, n)
    units = n if groups is None else int(member.max()) + 1

    def draw(chunk):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(chunk,))))
        counts = np.zeros((units, LANES), dtype=np.uint8)
        step = max(1, DRAWN_AT_ONCE // units)
        for lane in range(0, LANES, step):
            drawn = rng.integers(0, units, size=(min(step, LANES - lane), units), dtype=np.uint32)
            _count(drawn, lane, counts)
        return counts if groups is None else counts[member]

    return draw, -(-int(n_resamples) // LANES)


def _group_numbers(groups, n):
    import pandas as pd

    groups = np.asarray(groups, dtype=object)  # else one text among them makes texts of 1 and NaN
    if groups.shape != (n,):
        raise ValueError(f"groups must hold one group for each of {n} images, but has shape {groups.shape}.")
    try:
        numbers, _ = pd.factorize(groups)
    except TypeError:
        raise ValueError("groups must hold numbers or texts, but some entry is neither.") from None
    if (numbers < 0).any():
        raise ValueError(f"groups is missing for {int((numbers < 0).sum())} of {n} images.")
    return numbers


# Plans: sort once per model, and return a function (counts [n, LANES], totals [LANES]) -> [columns, LANES]


def _plan(metric, labels, probs):
    return PLANS[metric](labels, probs) if metric in PLANS else _one_by_one(metric, labels, probs)


def _ranked(labels, probs, area):
    sweeps = [_sweep(column, labels == c) for c, column in enumerate(probs.T)]

    def evaluate(counts, totals):
        areas = np.empty((len(sweeps), 2, LANES))
        for sweep, out in zip(sweeps, areas):
            _areas(counts, totals, *sweep, out)
        return areas[:, area]

    return evaluate


def _sweep(score, positive):
    """Images from the highest score down, cut into steps that end at each score which a positive image has.

    Within a step come the negatives above that score, the negatives tied with it, and the positives; `ends`
    [steps, 3] says where each of the three stops in `order`. Negatives below the last positive are left out.
    """
    _, group = np.unique(-score, return_inverse=True)
    has_positive = np.bincount(group, weights=positive) > 0
    step = (np.cumsum(has_positive) - has_positive)[group]
    place = 3 * step + np.where(positive, 2, has_positive[group])
    ends = np.cumsum(np.bincount(place, minlength=3 * has_positive.sum()))[: 3 * has_positive.sum()]
    return np.argsort(place, kind="stable").astype(np.uint32), ends.reshape(-1, 3)


def _binned(labels, probs, kind="one-vs-rest", squared=False):
    """Calibration error: |error| summed over bins / n; `squared`, Brier's: error**2 / images in the bin."""
    bins = [
        (*_order_by(m.bin_index(probability)), probability - hit)
        for probability, hit in m.calibration_events(labels, probs, kind)
    ]

    def evaluate(counts, totals):
        gaps = np.empty((len(bins), m.N_BINS, LANES))
        for (order, ends, error), out in zip(bins, gaps):
            _sums(counts, order, ends, error, out)
            if squared:
                images = np.empty_like(out)
                _sums(counts, order, ends, np.ones(len(order)), images)
                out[:] = out**2 / np.maximum(images, 1)
        return np.abs(gaps).sum(axis=1) / totals

    return evaluate


def _order_by(place):
    ends = np.cumsum(np.bincount(place, minlength=m.N_BINS))
    return np.argsort(place, kind="stable").astype(np.uint32), ends


def _averaged(scores):
    """Means over images of scores [n, columns]."""
    order, ends = np.arange(len(scores), dtype=np.uint32), np.array([len(scores)])

    def evaluate(counts, totals):
        sums = np.empty((scores.shape[1], 1, LANES))
        for score, out in zip(np.ascontiguousarray(scores.T), sums):
            _sums(counts, order, ends, score, out)
        return sums[:, 0] / totals

    return evaluate


def _squared_errors(labels, probs):
    return _averaged((probs - np.eye(probs.shape[1])[labels]) ** 2)


def _refinement(labels, probs):
    whole, calibration = _squared_errors(labels, probs), _binned(labels, probs, squared=True)
    return lambda counts, totals: whole(counts, totals) - calibration(counts, totals)


def _one_by_one(metric, labels, probs):
    def evaluate(counts, totals):
        drawn = (np.repeat(np.arange(len(labels)), lane) for lane in counts.T)
        return np.stack([m.COLUMNS[metric](labels[images], probs[images]) for images in drawn], axis=1)

    return evaluate


PLANS = {
    "auroc": partial(_ranked, area=0),
    "auprc": partial(_ranked, area=1),
    "ece": _binned,
    "ece_top_label": partial(_binned, kind="top-label"),
    "brier": _squared_errors,
    "brier_calibration": partial(_binned, squared=True),
    "brier_refinement": _refinement,
    "nll": lambda labels, probs: _averaged(m.image_nll(labels, probs)[:, None]),
    "accuracy": lambda labels, probs: _averaged((probs.argmax(axis=1) == labels)[:, None].astype(np.float64)),
}


# Kernels


def _compiled(function):
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder that a cache could be written to
        return numba.njit(**options)(function)


@_compiled
def _count(drawn, lane, counts):
    """Count the units in `drawn` [lanes, units], one resample per row, into counts[:, lane:]."""
    for r in range(drawn.shape[0]):
        for i in range(drawn.shape[1]):
            counts[drawn[r, i], lane + r] += 1


@_compiled
def _areas(counts, totals, order, ends, out):
    """AUROC (out[0]) and AUPRC (out[1]) of one class for LANES resamples; `order`, `ends` from `_sweep`."""
    found, false = np.zeros(LANES), np.zeros(LANES)  # positives and negatives so far
    parts = np.zeros((3, LANES), dtype=np.int32)
    out[:] = 0.0
    start = 0
    for step in range(ends.shape[0]):
        parts[:] = 0
        for part in range(3):
            for i in range(start, ends[step, part]):
                image = counts[order[i]]
                for r in range(LANES):
                    parts[part, r] += image[r]
            start = ends[step, part]
        for r in range(LANES):
            above, tied, new = parts[0, r], parts[1, r], parts[2, r]
            found[r] += new
            out[0, r] += new * (false[r] + above + 0.5 * tied)
            false[r] += above + tied
            out[1, r] += new * found[r] / max(found[r] + false[r], 1.0)
    for r in range(LANES):
        out[0, r] = 1.0 - out[0, r] / (found[r] * (totals[r] - found[r]))
        out[1, r] /= found[r]


@_compiled
def _sums(counts, order, ends, weight, out):
    """Sum of weight [n] x count over the images of each bin, [bins, LANES]; bins are stretches of `order`."""
    out[:] = 0.0
    start = 0
    for b in range(ends.shape[0]):
        for i in range(start, ends[b]):
            image, factor, total = counts[order[i]], weight[order[i]], out[b]
            for r in range(LANES):
                total[r] += factor * image[r]
        start = ends[b]
