"""Discrimination, calibration and decision metrics (section 2.7): pure functions of labels and probabilities.

Every function takes the truth first: `y_true` holds integer labels [n], `y_prob` probabilities [n, classes],
one row per image, columns in label order. All computations use float64. `validate` lists what is rejected.

**Undefined values are NaN.** The AUROC of a class needs an image of it and an image of another class, its AUPRC an
image of it. A macro average is the mean over the classes for which the metric is defined, and NaN if it is
defined for none. Calibration errors and Brier scores are defined for every class, even one without images.

**Bins of equal width** are closed on the right, (lower, upper], as in Guo et al. (2017); a probability of
exactly 0 belongs to the first bin. Edges are the float64 numbers k / n_bins. **Bins of equal mass** are cut by rank,
so that each holds about n / n_bins images; images of equal probability share a bin (by their mean rank), so that the
order of the images does not matter.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

N_BINS = 15

TOLERANCE = 1e-3  # a row of float16 probabilities, each rounded to nearest, sums to 1 within 2**-11


class ReliabilityCurve(NamedTuple):
    """Bins of a reliability diagram, [bins], or [classes, bins] for one-vs-rest; NaN where a bin is empty."""

    lower: np.ndarray
    upper: np.ndarray
    confidence: np.ndarray
    frequency: np.ndarray
    count: np.ndarray


def validate(y_true, y_prob):
    """Return (labels int64 [n], probabilities float64 [n, classes]); ValueError for anything else.

    Rejected are mismatched shapes, ragged rows, no image, fewer than two classes, labels that are not integers in
    0 .. classes - 1, and probabilities that are not finite, lie outside 0 .. 1 or do not sum to 1 in each row. A row
    sum may differ from 1 by 1e-3, which float16 rounding needs; rows are not renormalised.
    """
    labels, probs = array("y_true", y_true), array("y_prob", y_prob)
    if probs.ndim != 2 or probs.shape[1] < 2:
        raise ValueError(f"y_prob must be [n, classes] with at least two classes, not {probs.shape}.")
    if labels.shape != probs.shape[:1]:
        raise ValueError(
            f"y_true must hold one label for each row of y_prob, but their shapes are {labels.shape} and {probs.shape}."
        )
    if not len(labels):
        raise ValueError("y_true and y_prob are empty: a metric needs at least one image.")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"y_true must hold integers, but its type is {labels.dtype}.")
    if probs.dtype.kind not in "fiu":
        raise ValueError(f"y_prob must hold real numbers, but its type is {probs.dtype}.")
    last = probs.shape[1] - 1
    if labels.min() < 0 or labels.max() > last:
        raise ValueError(
            f"y_true must lie in 0 .. {last} for {last + 1} classes, but runs from {labels.min()} to {labels.max()}."
        )
    probs = probs.astype(np.float64)
    _refuse_rows(~np.isfinite(probs).all(axis=1), "is not finite")
    _refuse_rows(
        ((probs < 0) | (probs > 1 + TOLERANCE)).any(axis=1), "lies outside 0 .. 1; give probabilities, not logits"
    )
    _refuse_rows(np.abs(probs.sum(axis=1) - 1) > TOLERANCE, "does not sum to 1 in each row")
    return labels.astype(np.int64), probs


def array(name, value):
    """`value` as a NumPy array; ValueError if its rows differ in length."""
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must be rectangular, but its rows differ in length.") from None


def check_count(name, value):
    """Raise ValueError unless `value` is a positive integer (a bool is not one)."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1 up, but is {value!r}.")


def _refuse_rows(wrong, what):
    if wrong.any():
        raise ValueError(f"y_prob {what} ({int(wrong.sum())} of {len(wrong)} rows, first row {int(np.argmax(wrong))}).")


def defined_mean(values):
    """Mean over the last axis, ignoring NaN; NaN if all values are."""
    values = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(values)
    total, count = np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)[()]


# Discrimination


def auroc(y_true, y_prob):
    """Macro one-vs-rest area under the ROC curve (section 2.7); tied scores count half."""
    return float(defined_mean(_auroc(*validate(y_true, y_prob))))


def auprc(y_true, y_prob):
    """Macro one-vs-rest area under the precision-recall curve (section 2.7).

    This is average precision: precision times the step in recall, summed over the distinct scores, without
    interpolation.
    """
    return float(defined_mean(_auprc(*validate(y_true, y_prob))))


def accuracy(y_true, y_prob):
    """Share of images whose most probable class is the true one; ties go to the first class."""
    return float(_accuracy(*validate(y_true, y_prob))[0])


def _one_vs_rest(function):
    """Turn a function of (score, positive) into one of (labels, probs) that returns a value per class."""

    def each(labels, probs):
        return np.array([function(column, labels == c) for c, column in enumerate(probs.T)])

    return each


def _tie_groups(score, positive):
    """Positives and negatives [groups] at each distinct score, lowest first."""
    _, group, size = np.unique(score, return_inverse=True, return_counts=True)
    positives = np.bincount(group, weights=positive, minlength=len(size))
    return positives, size - positives


@_one_vs_rest
def _auroc(score, positive):
    positives, negatives = _tie_groups(score, positive)
    pairs = positives.sum() * negatives.sum()
    below = np.cumsum(negatives) - negatives / 2
    return positives @ below / pairs if pairs else np.nan


@_one_vs_rest
def _auprc(score, positive):
    positives, negatives = (counts[::-1] for counts in _tie_groups(score, positive))
    found, shown = np.cumsum(positives), np.cumsum(positives + negatives)
    return positives @ (found / shown) / found[-1] if found[-1] else np.nan


def _accuracy(labels, probs):
    return np.array([np.mean(probs.argmax(axis=1) == labels)])


# Calibration


def expected_calibration_error(y_true, y_prob, n_bins=N_BINS, kind="one-vs-rest"):
    """Binned ECE: expected calibration error over equal-width bins (section 2.7; Guo et al., 2017).

    The mean over bins, weighted by their images, of |mean probability - observed frequency|. `kind`:
    `one-vs-rest` compares the probability of each class with whether the image is of that class, and averages over
    classes (the paper's text); `top-label` compares the largest probability with whether its class is correct.
    The estimator is biased upwards at finite n: a perfectly calibrated model has a positive value
    (`calibration_floor`), and a real difference between two models is shrunk; that of the metric `ce2` is not.
    """
    return float(defined_mean(_ece(*validate(y_true, y_prob), n_bins, kind)))


def calibration_floor(y_prob, kind="one-vs-rest", *, n_bins=N_BINS, n_draws=1000, seed=42):
    """Binned ECE of a perfectly calibrated model with these probabilities, one value for each draw [n_draws].

    Labels are drawn from the model's own probabilities [n, classes], so that every value above 0 is the estimator's bias
    and noise at this number of images.
    """
    events = _calibrated_draws(y_prob, kind, n_bins, n_draws, seed)
    return np.mean([np.abs(hits - sums).sum(axis=1) / len(y_prob) for hits, sums, _ in events], axis=0)


def consistency_band(y_prob, kind="top-label", *, n_bins=N_BINS, n_draws=1000, seed=42):
    """Where a calibrated model's bins of a reliability diagram would lie: (low, high) of the observed frequency.

    The 2.5th and 97.5th percentiles of each bin over labels drawn from the model's own probabilities (Bröcker and
    Smith, 2007), [bins], or [classes, bins] for one-vs-rest; NaN where a bin is empty.
    """
    bands = [
        np.quantile(np.where(count, hits / np.maximum(count, 1), np.nan), [0.025, 0.975], axis=0)
        for hits, _, count in _calibrated_draws(y_prob, kind, n_bins, n_draws, seed)
    ]
    low, high = np.array(bands if kind == "one-vs-rest" else bands[0]).swapaxes(0, -2)
    return low, high


def _calibrated_draws(y_prob, kind, n_bins, n_draws, seed):
    """Per event: hits in each bin [n_draws, bins], the bins' sums of probabilities and numbers of images [bins]."""
    check_count("n_draws", n_draws)
    _, probs = validate(np.zeros(len(y_prob), dtype=int), y_prob)
    cumulated = np.cumsum(probs, axis=1)
    uniform = np.random.default_rng(seed).random((n_draws, len(probs))) * cumulated[:, -1]
    drawn = (uniform[:, :, None] >= cumulated[:, :-1]).sum(axis=2, dtype=np.int16)
    top = probs.argmax(axis=1)
    for c, (probability, _) in enumerate(calibration_events(top, probs, kind)):
        member = np.eye(n_bins)[bin_index(probability, n_bins)]
        hit = drawn == (top if kind == "top-label" else c)
        yield hit @ member, probability @ member, member.sum(axis=0)


def brier_score(y_true, y_prob):
    """Multi-class Brier score (Brier, 1950): squared errors summed over classes, mean over images; 0 to 2."""
    return float(_brier(*validate(y_true, y_prob)).sum())


def reliability_curve(y_true, y_prob, n_bins=N_BINS, kind="top-label"):
    """Mean probability, observed frequency and number of images of each equal-width bin (Figure 7).

    `kind` as in `expected_calibration_error`; Figure 7 draws `top-label`, so that is the default here.
    Returns a ReliabilityCurve; for `one-vs-rest` its arrays have a leading axis of classes.
    """
    bins = []
    for probability, hit in calibration_events(*validate(y_true, y_prob), kind):
        place = bin_index(probability, n_bins)
        count = np.bincount(place, minlength=n_bins)
        sums = [np.bincount(place, weights=weights, minlength=n_bins) for weights in (probability, hit)]
        bins.append([*(np.where(count, total / np.maximum(count, 1), np.nan) for total in sums), count])
    confidence, frequency, count = (np.array(part[0] if kind == "top-label" else part) for part in zip(*bins))
    edges = np.broadcast_to(_edges(n_bins), (*count.shape[:-1], n_bins + 1))
    return ReliabilityCurve(edges[..., :-1], edges[..., 1:], confidence, frequency, count)


def bin_index(probability, n_bins=N_BINS):
    """Number of the equal-width bin, 0 .. n_bins - 1, that each probability falls into."""
    return np.searchsorted(_edges(n_bins)[1:-1], probability, side="left")


def _edges(n_bins):
    check_count("n_bins", n_bins)
    return np.arange(n_bins + 1) / n_bins


def calibration_events(labels, probs, kind):
    """Pairs of probability [n] and outcome [n] that a kind of calibration compares; the arrays must be validated."""
    if kind == "one-vs-rest":
        return [(column, labels == c) for c, column in enumerate(probs.T)]
    if kind == "top-label":
        return [(probs.max(axis=1), probs.argmax(axis=1) == labels)]
    raise ValueError(f"unknown kind of calibration {kind!r}: known are one-vs-rest, top-label.")


def _calibration_error(probability, hit, place):
    return np.abs(np.bincount(place, weights=probability - hit)).sum() / len(place)


def _ece(labels, probs, n_bins=N_BINS, kind="one-vs-rest"):
    events = calibration_events(labels, probs, kind)
    return np.array([_calibration_error(p, hit, bin_index(p, n_bins)) for p, hit in events])


def _mass_bins(probability):
    """Number of the equal-mass bin, 0 .. N_BINS - 1, of each probability."""
    _, group, size = np.unique(probability, return_inverse=True, return_counts=True)
    twice_middle = 2 * np.cumsum(size) - size  # of the ranks, in 0 .. n, that each distinct probability takes up
    return (twice_middle * N_BINS // (2 * len(probability)))[group]


@_one_vs_rest
def _adaptive_ece(probability, hit):
    """Calibration error over bins of equal mass (Nixon et al., 2019)."""
    return _calibration_error(probability, hit, _mass_bins(probability))


@_one_vs_rest
def _ce2(probability, hit):
    """Debiased squared calibration error over bins of equal mass.

    The squared gap of a bin is estimated by the mean of d_i d_j over its pairs of different images, with
    d = probability - outcome, so that noise does not add to it. This is the debiased estimator of Kumar et al.
    (2019, marginal calibration error), the bias-corrected reliability of Ferro and Fricker (2012), and the unbiased
    kernel estimator of Widmann et al. (2019) whose kernel is "in the same bin". It can be negative for a
    well-calibrated model. Its square root, where positive, is on the scale of the ECE. It has no interval
    (`medq.bootstrap`). Pairs need two images; a bin of one counts as 0.
    """
    place, error = _mass_bins(probability), probability - hit
    count, total, squares = (np.bincount(place, weights=w) for w in (np.ones(len(hit)), error, error**2))
    return ((total**2 - squares) / np.maximum(count - 1, 1)).sum() / len(hit)


def _brier(labels, probs):
    return np.mean((probs - np.eye(probs.shape[1])[labels]) ** 2, axis=0)


@_one_vs_rest
def _reliability(probability, hit):
    """Murphy's (1973): the mean squared gap between a bin's mean probability and its observed frequency."""
    place = bin_index(probability)
    error = np.bincount(place, weights=probability - hit, minlength=N_BINS)
    return (error**2 / np.maximum(np.bincount(place, minlength=N_BINS), 1)).sum() / len(hit)


def _uncertainty(labels, probs):
    prevalence = np.bincount(labels, minlength=probs.shape[1]) / len(labels)
    return prevalence * (1 - prevalence)


def _resolution(labels, probs):
    """Stephenson et al.'s (2008), with the variation within bins: Brier = reliability - resolution + uncertainty exactly."""
    return _reliability(labels, probs) + _uncertainty(labels, probs) - _brier(labels, probs)


def image_nll(labels, probs):
    """-ln(probability of the true class) of each image [n], in nats, of validated arrays.

    Probabilities are clipped at float64's epsilon (2.2e-16), as in scikit-learn's log_loss, so that no image
    contributes more than 36.04.
    """
    return -np.log(np.clip(probs[np.arange(len(labels)), labels], np.finfo(np.float64).eps, 1.0))


def _nll(labels, probs):
    return np.array([np.mean(image_nll(labels, probs))])


# By name


class Metric(NamedTuple):
    """One row of the table of metrics: a new metric is a row and its function."""

    columns: Callable  # of validated (labels, probs): values per class [classes], or [1]
    title: str
    better: str = "lower"
    per_class: bool = True
    summed: bool = False  # over classes; else the mean of those that are defined
    study: bool = False  # one of the scores that studies store of every model


TABLE = {
    "auroc": Metric(_auroc, "ROC-AUC", "higher", study=True),
    "auprc": Metric(_auprc, "AUPRC", "higher", study=True),
    "ece": Metric(_ece, "Binned ECE", study=True),
    "ece_top_label": Metric(partial(_ece, kind="top-label"), "Binned ECE (top label)", per_class=False, study=True),
    "ece_adaptive": Metric(_adaptive_ece, "Binned ECE (equal mass)"),
    "ce2": Metric(_ce2, "Squared calibration error (debiased)"),
    "brier": Metric(_brier, "Brier", summed=True, study=True),
    "brier_reliability": Metric(_reliability, "Brier: reliability", summed=True),
    "brier_resolution": Metric(_resolution, "Brier: resolution", "higher", summed=True),
    "brier_uncertainty": Metric(_uncertainty, "Brier: uncertainty", "neither", summed=True),
    "nll": Metric(_nll, "Negative log-likelihood", per_class=False),
    "accuracy": Metric(_accuracy, "Accuracy", "higher", per_class=False),
}
PER_CLASS = tuple(name for name, row in TABLE.items() if row.per_class)
SCORES = tuple(name for name, row in TABLE.items() if row.study)


def combine(metric, columns):
    """One number from the values per class [..., classes or 1]: the sum for Brier, else the mean of the defined ones."""
    return np.sum(columns, axis=-1) if TABLE[metric].summed else defined_mean(columns)


def _whole(y_true, y_prob, metric):
    return float(combine(metric, TABLE[metric].columns(*validate(y_true, y_prob))))


METRICS = {name: partial(_whole, metric=name) for name in TABLE}  # name: function of (y_true, y_prob)


def known_metric(metric):
    """`metric`, if METRICS has that name; otherwise a ValueError that lists the names."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}: known are {', '.join(METRICS)}.")
    return metric


def per_class(y_true, y_prob, metric="auprc"):
    """One-vs-rest values of a metric for each class [classes] (section 2.7, Table 3); NaN where undefined.

    The macro value is the mean of the defined values, and the sum for `brier` and its parts.
    """
    if known_metric(metric) not in PER_CLASS:
        raise ValueError(f"{metric} has no value per class; metrics that have one: {', '.join(PER_CLASS)}.")
    return TABLE[metric].columns(*validate(y_true, y_prob))


def summary(y_true, y_prob, classes=None):
    """Every metric as tidy rows: a DataFrame with metric, class (empty for the macro value) and value."""
    labels, probs = validate(y_true, y_prob)
    names = class_names(classes, probs)
    rows = []
    for metric, row in TABLE.items():
        columns = row.columns(labels, probs)
        rows.append((metric, "", float(combine(metric, columns))))
        if row.per_class:
            rows += [(metric, name, float(value)) for name, value in zip(names, columns)]
    return pd.DataFrame(rows, columns=["metric", "class", "value"])


def class_names(classes, probs):
    """Names of the columns of `probs` as strings: `classes`, by default 0, 1, ..."""
    names = [str(c) for c in (range(probs.shape[1]) if classes is None else classes)]
    if len(names) != probs.shape[1]:
        raise ValueError(f"{len(names)} class names were given for {probs.shape[1]} classes.")
    return names


# Decisions that change when one model replaces another


def threshold_crossings(y_true, prob_reference, prob_other, *, sensitivity=0.95, classes=None):
    """Images that cross a threshold fixed on the reference model (FP32) when another (INT8) replaces it.

    An image is flagged for a class if its probability is at least the threshold: the highest at which the reference
    reaches `sensitivity` on these images. Chosen on the same images, it favours the reference slightly.

    Returns a DataFrame with one row per class: class, threshold, n; sensitivity, specificity and prevalence (share
    flagged) of the other model, and with `_reference` behind the name those of the reference; crossed_up and
    crossed_down, the images that only the other model flags, or only the reference. Undefined values are NaN:
    sensitivity without an image of the class, specificity without an image of another, everything without a threshold.
    """
    labels, reference = validate(y_true, prob_reference)
    other = _validate_other(labels, reference, prob_other)
    if not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity must be above 0 and at most 1, but is {sensitivity!r}.")
    rows = []
    for c, name in enumerate(class_names(classes, reference)):
        positive = labels == c
        found = np.sort(reference[positive, c])[::-1]
        needed = int(np.ceil(sensitivity * len(found) - 1e-9))  # 0.1 * 30 is a little above 3
        threshold = found[needed - 1] if len(found) else np.nan
        row = _crossings(positive, reference[:, c] >= threshold, other[:, c] >= threshold)
        row = dict.fromkeys(row, np.nan) if np.isnan(threshold) else row
        rows.append({"class": name, "threshold": threshold, "n": len(labels)} | row)
    return pd.DataFrame(rows)


def _validate_other(labels, probs, prob_other):
    _, other = validate(labels, prob_other)
    if other.shape != probs.shape:
        raise ValueError(f"the two models' probabilities differ in shape: {probs.shape} and {other.shape}.")
    return other


def _crossings(positive, before, after):
    """Rates of one class, and how many images cross, from which images are of the class and flagged by each model [n]."""
    row = {"crossed_up": (~before & after).sum(), "crossed_down": (before & ~after).sum()}
    for suffix, flagged in (("_reference", before), ("", after)):
        rates = {"sensitivity": flagged[positive], "specificity": ~flagged[~positive], "prevalence": flagged}
        row |= {name + suffix: np.mean(right) if len(right) else np.nan for name, right in rates.items()}
    return row


def label_flips(y_true, prob_a, prob_b):
    """How many images' most probable class differs between two models: {flipped, flipped_to_right, flipped_to_wrong, n}.

    An image whose class was wrong and is wrong in another way counts in `flipped` alone.
    """
    labels, first = validate(y_true, prob_a)
    a, b = first.argmax(axis=1), _validate_other(labels, first, prob_b).argmax(axis=1)
    counts = {
        "flipped": a != b,
        "flipped_to_right": (a != b) & (b == labels),
        "flipped_to_wrong": (a != b) & (a == labels),
    }
    return {name: int(images.sum()) for name, images in counts.items()} | {"n": len(labels)}
