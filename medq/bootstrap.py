"""Paired bootstrap (section 3.5, equations 1 to 3), intervals of single models, and Holm's correction.

A resample draws n images with replacement. With `groups` (lesions, near-duplicate images) it draws as many groups as
there are, with replacement, and a group brings all of its images. Both methods, and all backbones of a pooled
comparison, are evaluated on the same resamples. These depend only on `seed` and on the number of images (or the
groups): not on threads, metrics or models; a longer run begins with the resamples of a shorter one.

**Speed.** A resample is stored as how often each image is in it. For AUROC and AUPRC images are sorted once per class,
and a compiled kernel sweeps them, counting for LANES resamples side by side; means over images are matrix products.

**A class that is missing from a resample** has no AUPRC in it, and a mean over fewer classes is another quantity. Such
resamples are left out: percentiles and p-values are conditional on every class of the sample being drawn, and
`n_defined` is the number of resamples that remain.

**Levels and differences.** A difference has the percentile interval of equation 2. Percentiles of a value itself miss it
too often near 1 and in small classes, so that its interval is symmetric on the scale of the logit (Brier and NLL: of the
logarithm), with the half width of the percentiles, widened as Student's t is for as many groups. **Where simulation shows
that an interval fails** `tables` gives none, and no p-value (NaN): FEWEST, MISSED and CEILING for levels, NEAR_ONE
and MISSED_PAIRED for differences.

**No interval for calibration errors.** The percentiles of a binned ECE miss its true value in up to all samples, and no
interval tried for the debiased error reached 93 to 97 % everywhere (page *Metrics*); the Brier score and the negative
log-likelihood are tested instead.

Compiled kernels are cached beside this file, or in the user's cache folder if that is read-only; the
environment variable NUMBA_CACHE_DIR names another place. Without a writable cache each process compiles
again (two seconds).
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numba
import numpy as np
import pandas as pd
from scipy.special import expit, logit, ndtri, stdtrit

from medq import metrics as m, provenance
from medq.groups import group_numbers

LANES = 64  # resamples that a kernel handles side by side, and that share one random stream
LEVEL = 0.95
TIE = 1e-9  # percentage points: replicates nearer to 0 are ties that rounding has broken
DRAWN_AT_ONCE = 2**20  # images; bounds the memory of a draw
# Groups that an interval needs: of the rarest class for a mean over classes, of its own (or of the others) for one class
FEWEST = {"auroc": {"mean": 60, "class": np.inf}, "auprc": {"mean": 15, "class": 15}}
# Such groups x (1 - value) that an interval needs; of a mean over images, groups that the model misclassifies
MISSED = {"auprc": {"mean": 0.75, "class": 2.5}} | dict.fromkeys(("brier", "nll", "accuracy"), {"mean": 5, "class": 5})
MISSED_PAIRED = 10  # groups misclassified by the worse of two models that a difference of means over images needs
CEILING = {"auroc": 0.998}  # values above it have no interval
# Of a difference between models, {groups of the rarest class: what the lower of the two values must not exceed}
NEAR_ONE = {"auroc": {60: 0.995}, "auprc": {15: 0.9, 60: 0.985}}
RANKED = ("auroc", "auprc")
TESTED = (*RANKED, "brier", "nll", "accuracy")  # metrics that have intervals and p-values
FLOORS = {"ece_floor": "one-vs-rest", "ece_top_label_floor": "top-label"}


@dataclass(frozen=True)
class PairedDifference:
    """Method A minus method B, in percentage points: 100 x the metric's own unit.

    `delta` is the difference on the images themselves, `low` and `high` its percentile interval (equation 2),
    `replicates` [n_resamples] the differences of equation 1. `p_value` counts ties on both sides and adds one to
    each count and to B, as a Monte Carlo test must (Davison and Hinkley, 1997, section 4.2): it is never 0, and 1 for
    identical methods. `p_equation3` is the paper's equation 3, which is 0 for identical methods.
    """

    metric: str
    delta: float
    low: float
    high: float
    p_value: float
    p_equation3: float
    n_defined: int
    replicates: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Interval:
    """A metric and its interval, in the metric's own unit."""

    metric: str
    value: float
    low: float
    high: float
    n_defined: int
    replicates: np.ndarray = field(repr=False)


def paired_auprc(y_true, prob_a, prob_b, **options):
    """Paired bootstrap of macro AUPRC, method A minus B (section 3.5, equations 1 to 3): see `paired`."""
    return paired(y_true, prob_a, prob_b, "auprc", **options)


def paired(y_true, prob_a, prob_b, metric="auprc", *, n_resamples=10_000, groups=None, seed=42, threads=None):
    """Paired bootstrap of one of the metrics TESTED: a PairedDifference, in percentage points.

    `y_true` [n]; `prob_a` and `prob_b` [n, classes], or a sequence of such arrays each (backbones, in the
    same order), which are pooled: the mean difference over the pairs on the same resamples. `groups` [n]:
    what to resample instead of images. `threads`: by default all processors. Raises ValueError for what
    `medq.metrics.validate` rejects, sequences of unequal length, missing groups, a metric without a test, and numbers
    of resamples or threads below 1.
    """
    first, second = _as_models(prob_a), _as_models(prob_b)
    if len(first) != len(second):
        raise ValueError(f"prob_a holds {len(first)} models and prob_b {len(second)}, but they go in pairs.")
    options = {"n_resamples": n_resamples, "groups": groups, "seed": seed, "threads": threads}
    points, draws = _evaluate(y_true, first + second, metric, **options)
    pairs = len(first)
    # pair by pair, so that the difference of equal methods is exactly 0
    delta = float((points[:pairs] - points[pairs:]).mean())
    return difference(metric, delta, (draws[:, :pairs] - draws[:, pairs:]).mean(axis=1))


def difference(metric, delta, draws):
    """The PairedDifference of a difference and its replicates [n_resamples], both in the metric's unit."""
    draws = 100 * draws
    defined = draws[~np.isnan(draws)]
    n = len(defined)
    low, high = _percentiles(defined)
    above, below = np.sum(defined > TIE), np.sum(defined < -TIE)
    ties = n - above - below
    paper = min(1.0, 2 * min(above + ties, below) / n) if n else np.nan
    p_value = min(1.0, 2 * (1 + min(above, below) + ties) / (1 + n)) if n else np.nan
    return PairedDifference(metric, 100 * delta, low, high, float(p_value), float(paper), n, draws)


def interval(y_true, y_prob, metric="auprc", **options):
    """95 % interval of a metric of one model [n, classes], or of its mean over several models.

    `options` are those of `paired`. The metric must be one of TESTED. The ends are NaN for a value at the end of its
    scale, and for a ranked metric where a class has a single group.
    """
    models = _as_models(y_prob)
    points, draws = _evaluate(y_true, models, metric, **options)
    labels, flat = _validate(y_true, models)
    size = _rarest(_sizes(labels, flat[0].shape[1], options.get("groups"))[metric])
    return _interval(metric, points.mean(), draws.mean(axis=1), size)


def _evaluate(y_true, models, metric, **options):
    """Values [models] and replicates [n_resamples, models] of one metric."""
    labels, models = _validate(y_true, models)
    values = replicates(labels, models, [metric], **options)[metric]
    points = [m.combine(metric, m.TABLE[metric].columns(labels, p)) for p in models]
    return np.array(points), _macro(metric, values)


def _macro(metric, values):
    """One number from replicates per class [..., models, columns]; NaN where a class of the sample was not drawn."""
    present = ~np.isnan(values).all(axis=(0, 1))
    if not present.any():
        return np.full(values.shape[:-1], np.nan)
    kept = values[..., present]
    return kept.sum(axis=-1) if m.TABLE[metric].summed else kept.mean(axis=-1)


def _percentiles(defined):
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(defined) else (np.nan, np.nan)
    return float(low), float(high)


def _interval(metric, value, draws, size):
    """The Interval of a value that rests on `size` groups; NaN ends where the value is at the end of its scale."""
    defined = draws[~np.isnan(draws)]
    low, high = _percentiles(defined)
    half = (high - low) / 2 * stdtrit(size - 1, (1 + LEVEL) / 2) / ndtri((1 + LEVEL) / 2)
    ends = value * np.array([-1, 1]) * np.nan
    if m.TABLE[metric].better == "lower" and value > 0:
        ends = value * np.exp(np.array([-1, 1]) * half / value)
    elif m.TABLE[metric].better == "higher" and 0 < value < 1:
        ends = expit(logit(value) + np.array([-1, 1]) * half / (value * (1 - value)))
    return Interval(metric, float(value), float(ends[0]), float(ends[1]), len(defined), draws)


def level_holds(metric, value, size, wrong, of="mean"):
    """Whether the interval of a mean over classes, or of one `class`, holds in simulation.

    `size`: groups of the rarest class, or of that class. `wrong`: groups that the model misclassifies.
    """
    enough = size >= FEWEST[metric][of] if metric in FEWEST else True
    missed = (size * (1 - value) if metric in RANKED else wrong) >= MISSED.get(metric, {}).get(of, -np.inf)
    return enough and missed and value <= CEILING.get(metric, np.inf)


def difference_holds(metric, values, size, wrong):
    """Whether percentiles hold for the difference of two such means; `wrong` is that of the worse model."""
    if metric not in RANKED:
        return wrong >= MISSED_PAIRED
    return min(values) <= max((v for fewest, v in NEAR_ONE.get(metric, {}).items() if size >= fewest), default=-np.inf)


def _level(metric, value, draws, size, wrong, of="mean"):
    """(value, low, high) of a value itself, not of a difference: NaN ends where they fail in simulation."""
    if metric in FLOORS:
        return value, *_percentiles(draws)
    holds = level_holds(metric, value, size, wrong, of)
    i = _interval(metric, value, draws if holds else draws * np.nan, size)
    return i.value, i.low, i.high


def tables(y_true, models, pairs=(), *, classes=None, groups=None, n_resamples=100_000, seed=42, threads=None):
    """Rows of intervals.csv and bootstrap.csv of all models that were evaluated on the same images.

    `models` {(backbone, regime): probabilities [n, classes], or {seed: probabilities} where a model was trained with
    several seeds}; `pairs`: regimes (a, b) to compare. Other arguments as in `paired`. Returns two DataFrames:

    - intervals: backbone, regime, metric (each of TESTED), class (empty: the macro value), value, low, high,
      between_std, n_models, trainings. One row for each backbone, and for `mean`, the mean over the `n_models` backbones
      of a regime, whose standard deviation (n - 1) is `between_std`. The rows `ece_floor` and `ece_top_label_floor` are
      the binned ECE that the model would show if it were calibrated, and its 95 % band (`metrics.calibration_floor`).
    - differences: backbone (`all`: pooled over the `n_models` backbones that have both), method_a, method_b, metric,
      n_resamples, delta_pp, low_pp, high_pp, images_low_pp and images_high_pp (over other images alone), p_value,
      p_equation3, n_models, trainings (seeds that both have: only these are compared, seed by seed).

    With several trainings the value is their mean, and intervals and p-values cover another training as well as other
    images: a draw of Student's t with trainings - 1 degrees of freedom, scaled by the standard error between the
    trainings, is added to each replicate. With one training an interval covers other images alone. Ends and p-values are
    NaN where simulation shows that they fail (FEWEST and the constants beside it).
    """
    models = {key: p if isinstance(p, dict) else {"": p} for key, p in models.items()}
    options = {"n_resamples": n_resamples, "groups": groups, "seed": seed, "threads": threads}
    intervals, differences, means, pooled = [], [], {}, {}
    for k, backbone in enumerate(dict.fromkeys(backbone for backbone, _ in models)):
        rng = np.random.default_rng([seed, k])
        own = {regime: p for (b, regime), p in models.items() if b == backbone}
        found, rows, sizes = _estimates(y_true, own, classes, options, rng)
        intervals += [(backbone, *row) for row in rows]
        for key, estimate in found.items():
            means.setdefault(key, []).append(_over_trainings(estimate, rng))
        for a, b in pairs:
            for metric in TESTED if {a, b} <= own.keys() else ():
                first, second = found[a, metric], found[b, metric]
                alike = {s: (first[s][0] - second[s][0], first[s][1] - second[s][1]) for s in first if s in second}
                if alike:
                    levels = np.mean([(first[s][0], second[s][0]) for s in alike], axis=0)
                    images = np.mean([draws for _, draws in alike.values()], axis=0)
                    wrong = max(_misclassified(found[regime, "accuracy"].values(), sizes) for regime in (a, b))
                    estimate = *_over_trainings(alike, rng), images, levels, wrong
                    differences.append(_difference_row(backbone, a, b, metric, *estimate, sizes[metric], 1))
                    pooled.setdefault((a, b, metric), []).append(estimate)
    for (regime, metric), parts in means.items():
        values = [points.mean() for points, _ in parts]
        wrong = _misclassified(means[regime, "accuracy"], sizes)
        draws = np.mean([draws for _, draws in parts], axis=0)
        level = _level(metric, np.mean(values), draws, sizes.get(metric), wrong)
        spread = float(np.std(values, ddof=1)) if len(parts) > 1 else np.nan
        trainings = min(len(points) for points, _ in parts)
        intervals.append(("mean", regime, metric, "", *level, spread, len(parts), trainings))
    for (a, b, metric), parts in pooled.items():
        points, *others = zip(*parts)
        delta, others = np.mean([p.mean() for p in points], keepdims=True), [np.mean(x, axis=0) for x in others]
        row = _difference_row("all", a, b, metric, delta, *others, sizes[metric], len(parts))
        differences.append((*row[:-1], min(map(len, points))))
    names = "backbone regime metric class value low high between_std n_models trainings"
    of_pairs = "backbone method_a method_b metric n_resamples delta_pp low_pp high_pp images_low_pp images_high_pp p_value p_equation3"
    return (
        pd.DataFrame(intervals, columns=names.split()),
        pd.DataFrame(differences, columns=[*of_pairs.split(), "n_models", "trainings"]),
    )


def _estimates(y_true, models, classes, options, rng):
    """Of one backbone: {(regime, metric): {seed: (macro value, replicates)}}, rows of intervals, {metric: size}."""
    labels, flat = _validate(y_true, [p for trainings in models.values() for p in trainings.values()])
    names, of_classes = m.class_names(classes, flat[0]), _sizes(labels, flat[0].shape[1], options["groups"])
    sizes = {metric: _rarest(groups) for metric, groups in of_classes.items()}
    drawn, start, found, rows = replicates(labels, flat, TESTED, **options), 0, {}, []
    for regime, trainings in models.items():
        part, estimates = slice(start, start := start + len(trainings)), []
        for metric in TESTED:
            columns = np.array([m.TABLE[metric].columns(labels, p) for p in flat[part]])
            own = drawn[metric][:, part]
            whole = m.combine(metric, columns), _macro(metric, own)
            found[regime, metric] = dict(zip(trainings, zip(whole[0], whole[1].T)))
            estimates.append((metric, "", *whole, sizes[metric], "mean"))
            for c, name in enumerate(names if m.TABLE[metric].per_class else []):
                estimates.append((metric, name, columns[:, c], own[:, :, c], of_classes[metric][c], "class"))
        wrong = _misclassified(found[regime, "accuracy"].values(), sizes)
        for metric, name, points, draws, size, of in estimates:
            points, draws = _over_trainings(dict(enumerate(zip(points, draws.T))), rng)
            level = _level(metric, points.mean(), draws, size, wrong, of)
            rows.append((regime, metric, name, *level, np.nan, 1, len(points)))
        for metric, kind in FLOORS.items():
            draws = np.mean([m.calibration_floor(p, kind) for p in flat[part]], axis=0)
            found[regime, metric] = {"": (draws.mean(), draws)}
            rows.append((regime, metric, "", *_level(metric, draws.mean(), draws, 0, 0), np.nan, 1, len(trainings)))
    return found, rows, sizes


def _misclassified(accuracies, sizes):
    """Groups that models misclassify on average, from their estimates (accuracy, replicates)."""
    return sizes["accuracy"] * (1 - np.mean([np.mean(accuracy) for accuracy, _ in accuracies]))


def _rarest(sizes):
    """The smallest of the sizes of classes that are there."""
    return min((n for n in sizes if n), default=0)


def _sizes(labels, n_classes, groups):
    """{metric: [classes] groups that its values rest on}: all for means over images.

    For ranked metrics those with images of the class, or of the other classes where those are fewer.
    """
    member = np.arange(len(labels)) if groups is None else group_numbers(groups, len(labels))
    count = [[len(np.unique(member[(labels == c) == own])) for own in (True, False)] for c in range(n_classes)]
    ranked, everything = np.min(count, axis=1), np.full(n_classes, len(np.unique(member)))
    return {metric: ranked if metric in RANKED else everything for metric in TESTED}


def _with_trainings(points, draws, rng):
    """Replicates that also cover another training, from values [trainings] and replicates of their mean."""
    n = len(points)
    return draws if n == 1 else draws + rng.standard_t(n - 1, len(draws)) * np.std(points, ddof=1) / np.sqrt(n)


def _over_trainings(estimate, rng):
    """(values [trainings], replicates of their mean) of an estimate {seed: (value, replicates)}."""
    points, draws = map(np.array, zip(*estimate.values()))
    return points, _with_trainings(points, draws.mean(axis=0), rng)


def _difference_row(backbone, a, b, metric, points, draws, images, levels, wrong, size, n_models):
    holds = 1 if difference_holds(metric, levels, size, wrong) else np.nan
    d = difference(metric, float(points.mean()), holds * draws)
    over_images = difference(metric, 0.0, holds * images)
    numbers = d.delta, d.low, d.high, over_images.low, over_images.high, d.p_value, d.p_equation3
    return backbone, a, b, metric, len(draws), *numbers, n_models, len(points)


def with_holm(differences):
    """The frame of differences with `p_holm`: Holm's correction of `p_value`.

    A family is all comparisons of one metric, in all datasets; those pooled over backbones, and those with a simulated
    model (a method such as `ptq-fbgemm.fake-quant`), are families of their own.
    """
    simulated = (differences["method_a"] + differences["method_b"]).str.contains(".", regex=False)
    family = [differences["metric"], differences["backbone"].eq("all"), simulated]
    adjusted = differences.groupby(family)["p_value"].transform(lambda p: holm(p.to_numpy()))
    return differences.assign(p_holm=adjusted)


def holm(p_values):
    """Holm's step-down correction over a family of comparisons: adjusted p-values in the order given.

    NaN (a comparison that could not be made) stays NaN and does not count in the family. Raises ValueError for
    anything but a list of probabilities.
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

    Columns are classes, or one for a metric without values per class. All other functions are built on this one.
    """
    labels, models = _validate(y_true, models)
    if threads is not None:
        m.check_count("threads", threads)
    for metric in metrics:
        if m.known_metric(metric) not in TESTED:
            raise ValueError(f"{metric} has no bootstrap interval or test; metrics that have: {', '.join(TESTED)}.")
    draw, n_chunks = _drawing(len(labels), n_resamples, groups, seed)
    n_classes = models[0].shape[1]
    ranked = [[_sweep(p, labels == c) for c, p in enumerate(probs.T)] for probs in models if set(metrics) & set(RANKED)]
    scores = [_image_scores(labels, probs) for probs in models] if set(metrics) - set(RANKED) else []
    width = {metric: n_classes if m.TABLE[metric].per_class else 1 for metric in metrics}
    values = {metric: np.empty((n_chunks * LANES, len(models), width[metric])) for metric in metrics}

    def work(chunk):
        counts, lanes = draw(chunk), slice(chunk * LANES, (chunk + 1) * LANES)
        total = counts.sum(axis=0, dtype=np.float64)
        for k, sweeps in enumerate(ranked):
            areas = np.empty((n_classes, 2, LANES))
            for sweep, out in zip(sweeps, areas):
                _areas(counts, total, *sweep, out)
            for area, metric in enumerate(RANKED):
                if metric in values:
                    values[metric][lanes, k] = areas[:, area].T
        weights = counts.T / total[:, None] if scores else None
        for k, columns in enumerate(scores):  # one product for each model, so that equal models have equal values
            found = weights @ columns
            for metric, part in (("brier", slice(-2)), ("nll", slice(-2, -1)), ("accuracy", slice(-1, None))):
                if metric in values:
                    values[metric][lanes, k] = found[:, part]

    # kernels, draws and products release the interpreter lock
    with ThreadPoolExecutor(threads or provenance.usable_cores()) as pool:
        list(pool.map(work, range(n_chunks)))
    return {metric: array[:n_resamples] for metric, array in values.items()}


def _image_scores(labels, probs):
    """Squared error of each class, negative log-likelihood and correctness of each image [n, classes + 2]."""
    squares = (probs - np.eye(probs.shape[1])[labels]) ** 2
    return np.column_stack([squares, m.image_nll(labels, probs), probs.argmax(axis=1) == labels])


def resample_counts(n, n_resamples, *, groups=None, seed=42):
    """The resamples that all functions here use, one after the other: how often each image is in it, uint8 [n]."""
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
    member = None if groups is None else group_numbers(groups, n)
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


# Kernels: images are sorted once per model


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
