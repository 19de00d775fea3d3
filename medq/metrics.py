"""Discrimination, calibration and decision metrics (section 2.7): pure functions of labels and probabilities.

Every function takes the truth first: `y_true` holds integer labels [n], `y_prob` probabilities [n, classes],
one row per image, columns in label order. All is computed in float64. `validate` says what is refused.

**What is undefined is NaN.** AUROC of a class needs an image of it and an image of another class, AUPRC an
image of it. A macro average is the mean over the classes for which the metric is defined, and NaN where it is
defined for none. Calibration errors and Brier scores are defined for every class, even one without images.

**Bins** of equal width are closed on the right, (lower, upper], as in Guo et al. (2017); a probability of
exactly 0 belongs to the first bin. Edges are the float64 numbers k / n_bins.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

N_BINS = 15
TOLERANCE = 1e-3  # a row of float16 probabilities, each rounded to nearest, sums to 1 within 2**-11


class BrierDecomposition(NamedTuple):
    """Classwise parts of the Brier score, [classes] each; together they add up to it."""

    calibration: np.ndarray
    refinement: np.ndarray


class ReliabilityCurve(NamedTuple):
    """Bins of a reliability diagram, [bins], or [classes, bins] for one-vs-rest; NaN where a bin is empty."""

    lower: np.ndarray
    upper: np.ndarray
    confidence: np.ndarray
    frequency: np.ndarray
    count: np.ndarray


def validate(y_true, y_prob):
    """Return (labels int64 [n], probabilities float64 [n, classes]), or raise ValueError with a sentence.

    Refused are shapes that do not match, ragged rows, no image or fewer than two classes, labels that are not integers or
    not in 0 .. classes - 1, and probabilities that are not finite, lie outside 0 .. 1 or do not sum to 1 in a
    row. A row may miss 1 by 1e-3, which float16 and float32 rounding need; it is not normalised again.
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
    """`value` as a NumPy array, or ValueError with a sentence where its rows differ in length."""
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must be rectangular, but its rows differ in length.") from None


def check_count(name, value):
    """Raise ValueError with a sentence unless `value` is a whole number from 1 up."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1 up, but is {value!r}.")


def _refuse_rows(wrong, what):
    if wrong.any():
        raise ValueError(f"y_prob {what} ({int(wrong.sum())} of {len(wrong)} rows, first row {int(np.argmax(wrong))}).")


def defined_mean(values):
    """Mean over the last axis of the values that are not NaN; NaN where none is left."""
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

    It is average precision: precision times the step in recall, summed over the distinct scores, without
    interpolation.
    """
    return float(defined_mean(_auprc(*validate(y_true, y_prob))))


def accuracy(y_true, y_prob):
    """Share of images whose most probable class is the true one; of equals the first counts."""
    return float(_accuracy(*validate(y_true, y_prob))[0])


def _tie_groups(score, positive):
    """Positives and negatives [groups] at each distinct score, lowest first."""
    _, group, size = np.unique(score, return_inverse=True, return_counts=True)
    positives = np.bincount(group, weights=positive, minlength=len(size))
    return positives, size - positives


def _one_vs_rest(function, labels, probs):
    return np.array([function(column, labels == c) for c, column in enumerate(probs.T)])


def _auroc(labels, probs):
    def one(score, positive):
        positives, negatives = _tie_groups(score, positive)
        pairs = positives.sum() * negatives.sum()
        below = np.cumsum(negatives) - negatives / 2
        return positives @ below / pairs if pairs else np.nan

    return _one_vs_rest(one, labels, probs)


def _auprc(labels, probs):
    def one(score, positive):
        positives, negatives = (counts[::-1] for counts in _tie_groups(score, positive))
        found, shown = np.cumsum(positives), np.cumsum(positives + negatives)
        return positives @ (found / shown) / found[-1] if found[-1] else np.nan

    return _one_vs_rest(one, labels, probs)


def _accuracy(labels, probs):
    return np.array([np.mean(probs.argmax(axis=1) == labels)])


# Calibration


def expected_calibration_error(y_true, y_prob, n_bins=N_BINS, kind="one-vs-rest"):
    """Expected calibration error over equal-width bins (section 2.7; Guo et al., 2017).

    It is the mean over bins, weighted by their images, of |mean probability - observed frequency|. `kind`:
    `one-vs-rest` compares each class's probability with whether the image is of that class, and averages over
    classes (the paper's text); `top-label` compares the largest probability with whether its class is right.
    """
    return float(defined_mean(_ece(*validate(y_true, y_prob), n_bins, kind)))


def adaptive_calibration_error(y_true, y_prob, n_bins=N_BINS):
    """One-vs-rest calibration error over bins of equal mass, averaged over classes (Nixon et al., 2019).

    Bins are cut by rank, so that each holds about n / n_bins images. Images of equal probability share a bin
    (by their mean rank), so that the order of the images does not matter.
    """
    return float(defined_mean(_adaptive_ece(*validate(y_true, y_prob), n_bins)))


def brier_score(y_true, y_prob):
    """Multi-class Brier score (Brier, 1950): squared errors summed over classes, mean over images; 0 to 2."""
    return float(_brier(*validate(y_true, y_prob)).sum())


def brier_decomposition(y_true, y_prob, n_bins=N_BINS):
    """Split the Brier score of each class into calibration + refinement over equal-width bins, exactly.

    Within a bin the mean squared error is the mean error squared (calibration: what shifting the bin's
    probabilities would mend) plus the error's variance (refinement: what is left). Where the images of a bin
    share one probability, refinement is observed frequency x (1 - observed frequency), as in Murphy (1973).
    """
    labels, probs = validate(y_true, y_prob)
    return BrierDecomposition(_brier_calibration(labels, probs, n_bins), _brier_refinement(labels, probs, n_bins))


def negative_log_likelihood(y_true, y_prob):
    """Mean of -ln(probability of the true class), in nats.

    A probability below float64's epsilon (2.2e-16), 0 among them, counts as that, as in scikit-learn's
    log_loss: no image counts for more than 36.04.
    """
    return float(_nll(*validate(y_true, y_prob))[0])


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
    """What a kind of calibration compares, of validated arrays: pairs of probability [n] and hit [n]."""
    if kind == "one-vs-rest":
        return [(column, labels == c) for c, column in enumerate(probs.T)]
    if kind == "top-label":
        return [(probs.max(axis=1), probs.argmax(axis=1) == labels)]
    raise ValueError(f"unknown kind of calibration {kind!r}: known are one-vs-rest, top-label.")


def _calibration_error(probability, hit, place):
    return np.abs(np.bincount(place, weights=probability - hit)).sum() / len(place)


def _ece(labels, probs, n_bins=N_BINS, kind="one-vs-rest"):
    return np.array(
        [
            _calibration_error(probability, hit, bin_index(probability, n_bins))
            for probability, hit in calibration_events(labels, probs, kind)
        ]
    )


def _adaptive_ece(labels, probs, n_bins=N_BINS):
    _edges(n_bins)  # refuses a wrong number of bins

    def one(probability, hit):
        _, group, size = np.unique(probability, return_inverse=True, return_counts=True)
        twice_middle = 2 * np.cumsum(size) - size  # of each distinct probability's stretch of ranks in 0 .. n
        return _calibration_error(probability, hit, (twice_middle * n_bins // (2 * len(hit)))[group])

    return _one_vs_rest(one, labels, probs)


def _brier(labels, probs):
    return np.mean((probs - np.eye(probs.shape[1])[labels]) ** 2, axis=0)


def _brier_calibration(labels, probs, n_bins=N_BINS):
    def one(probability, hit):
        place = bin_index(probability, n_bins)
        error = np.bincount(place, weights=probability - hit, minlength=n_bins)
        return (error**2 / np.maximum(np.bincount(place, minlength=n_bins), 1)).sum() / len(hit)

    return _one_vs_rest(one, labels, probs)


def _brier_refinement(labels, probs, n_bins=N_BINS):
    return _brier(labels, probs) - _brier_calibration(labels, probs, n_bins)


def image_nll(labels, probs):
    """-ln(probability of the true class) of each image [n], of validated arrays."""
    return -np.log(np.clip(probs[np.arange(len(labels)), labels], np.finfo(np.float64).eps, 1.0))


def _nll(labels, probs):
    return np.array([np.mean(image_nll(labels, probs))])


# By name

METRICS = {
    "auroc": auroc,
    "auprc": auprc,
    "ece": expected_calibration_error,
    "ece_top_label": partial(expected_calibration_error, kind="top-label"),
    "ece_adaptive": adaptive_calibration_error,
    "brier": brier_score,
    "brier_calibration": lambda y_true, y_prob: float(brier_decomposition(y_true, y_prob).calibration.sum()),
    "brier_refinement": lambda y_true, y_prob: float(brier_decomposition(y_true, y_prob).refinement.sum()),
    "nll": negative_log_likelihood,
    "accuracy": accuracy,
}
# The columns [classes], or [1], that `combine` makes one number of; they take validated arrays.
COLUMNS = {
    "auroc": _auroc,
    "auprc": _auprc,
    "ece": _ece,
    "ece_top_label": partial(_ece, kind="top-label"),
    "ece_adaptive": _adaptive_ece,
    "brier": _brier,
    "brier_calibration": _brier_calibration,
    "brier_refinement": _brier_refinement,
    "nll": _nll,
    "accuracy": _accuracy,
}
SUMMED = ("brier", "brier_calibration", "brier_refinement")
PER_CLASS = tuple(name for name in COLUMNS if name not in ("ece_top_label", "nll", "accuracy"))


def combine(metric, columns):
    """One number of a metric's columns [..., classes or 1]: sum for Brier, else mean of the defined."""
    return np.sum(columns, axis=-1) if metric in SUMMED else defined_mean(columns)


def known_metric(metric):
    """Return `metric` if METRICS has that name, or raise ValueError with a sentence that lists the names."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}: known are {', '.join(METRICS)}.")
    return metric


def per_class(y_true, y_prob, metric="auprc"):
    """One-vs-rest values of a metric for each class [classes] (section 2.7, Table 3); NaN where undefined.

    The macro value is the mean of the defined ones; for `brier` and its two parts it is the sum.
    """
    if known_metric(metric) not in PER_CLASS:
        raise ValueError(f"{metric} has no value per class; these have: {', '.join(PER_CLASS)}.")
    return COLUMNS[metric](*validate(y_true, y_prob))


def summary(y_true, y_prob, classes=None):
    """Every metric as tidy rows: a DataFrame with metric, class (empty for the macro value) and value."""
    import pandas as pd

    labels, probs = validate(y_true, y_prob)
    names = class_names(classes, probs)
    rows = []
    for metric, function in COLUMNS.items():
        columns = function(labels, probs)
        rows.append((metric, "", float(combine(metric, columns))))
        if metric in PER_CLASS:
            rows += [(metric, name, float(value)) for name, value in zip(names, columns)]
    return pd.DataFrame(rows, columns=["metric", "class", "value"])


def class_names(classes, probs):
    """Names of the columns of `probs` as strings: `classes`, or 0, 1, ... without them."""
    names = [str(c) for c in (range(probs.shape[1]) if classes is None else classes)]
    if len(names) != probs.shape[1]:
        raise ValueError(f"{len(names)} class names were given for {probs.shape[1]} classes.")
    return names


# Decisions: what becomes of an image when one model takes another's place


def threshold_crossings(y_true, prob_reference, prob_other, *, sensitivity=0.95, thresholds=None, classes=None):
    """What happens at a threshold fixed on the reference model (FP32) when the other (INT8) takes its place.

    For each class an image is flagged where its probability is at least the threshold. `thresholds` (one
    number, or one per class) are used as given; without them a class's threshold is the highest at which the
    reference reaches `sensitivity` on these images. Chosen on the same images, it flatters the reference a
    little; a threshold from other images judges both models alike.

    Returns a DataFrame, one row per class: class, threshold, n, n_positive; the images that cross, by
    direction and truth: up_positive (of the class, flagged by the other model only), up_negative (a new false
    alarm), down_positive (a silent miss), down_negative, and crossed, their sum; then sensitivity,
    specificity and prevalence (share flagged), each as _reference, _other and _shift (other - reference).
    Undefined is NaN: sensitivity without an image of the class, specificity without another, all without a
    threshold.
    """
    import pandas as pd

    labels, reference = validate(y_true, prob_reference)
    other = _validate_other(labels, reference, prob_other)
    names = class_names(classes, reference)
    if thresholds is None:
        thresholds = _one_vs_rest(partial(_threshold, sensitivity=sensitivity), labels, reference)
    try:
        thresholds = np.broadcast_to(np.asarray(thresholds, dtype=np.float64), len(names))
    except (TypeError, ValueError):
        raise ValueError(
            f"thresholds must be one number, or one for each of {len(names)} classes, but is {thresholds!r}."
        ) from None
    return pd.DataFrame(
        [
            {
                "class": name,
                "threshold": thresholds[c],
                **_crossings(labels == c, reference[:, c], other[:, c], thresholds[c]),
            }
            for c, name in enumerate(names)
        ]
    )


def _validate_other(labels, probs, prob_other):
    _, other = validate(labels, prob_other)
    if other.shape != probs.shape:
        raise ValueError(f"the two models' probabilities differ in shape: {probs.shape} and {other.shape}.")
    return other


def _threshold(score, positive, sensitivity):
    if not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity must be above 0 and at most 1, but is {sensitivity!r}.")
    found = np.sort(score[positive])[::-1]
    needed = int(np.ceil(sensitivity * len(found) - 1e-9))  # 0.1 * 30 is a little above 3
    return found[needed - 1] if len(found) else np.nan


def _crossings(positive, score_reference, score_other, threshold):
    before, after = score_reference >= threshold, score_other >= threshold
    up, down = ~before & after, before & ~after
    row = {
        "up_positive": (up & positive).sum(),
        "up_negative": (up & ~positive).sum(),
        "down_positive": (down & positive).sum(),
        "down_negative": (down & ~positive).sum(),
        "crossed": (up | down).sum(),
    }
    everything = np.ones_like(positive)
    for name, among, flag in [
        ("sensitivity", positive, True),
        ("specificity", ~positive, False),
        ("prevalence", everything, True),
    ]:
        first, second = (np.mean(flagged[among] == flag) if among.any() else np.nan for flagged in (before, after))
        row |= {f"{name}_reference": first, f"{name}_other": second, f"{name}_shift": second - first}
    if np.isnan(threshold):
        row = dict.fromkeys(row, np.nan)
    return {"n": len(positive), "n_positive": positive.sum(), **row}


def label_flips(y_true, prob_a, prob_b, *, classes=None):
    """Images whose most probable class differs between two models.

    Returns a DataFrame, one row for all images (class empty) and one for each true class: class, n, flips,
    share (of n; NaN without images), and by outcome right_to_wrong, wrong_to_right, wrong_to_wrong.
    """
    import pandas as pd

    labels, first = validate(y_true, prob_a)
    second = _validate_other(labels, first, prob_b)
    names = class_names(classes, first)
    a, b = first.argmax(axis=1), second.argmax(axis=1)
    rows = []
    for name, members in [("", labels >= 0), *((name, labels == c) for c, name in enumerate(names))]:
        flip, n = members & (a != b), members.sum()
        rows.append(
            {
                "class": name,
                "n": n,
                "flips": flip.sum(),
                "share": flip.sum() / n if n else np.nan,
                "right_to_wrong": (flip & (a == labels)).sum(),
                "wrong_to_right": (flip & (b == labels)).sum(),
                "wrong_to_wrong": (flip & (a != labels) & (b != labels)).sum(),
            }
        )
    return pd.DataFrame(rows)
