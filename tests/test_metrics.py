"""Metrics against scikit-learn, torchmetrics and plain loops, and what they refuse."""

import math
import warnings

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn import config_context
from sklearn import metrics as sklearn_metrics

from medq import metrics

KINDS = ("smooth", "tied", "bin edges", "saturated", "float16", "float32", "absent class", "one image")


def random_case(rng, kind):
    """Labels and probabilities of one kind; small, so that ties, empty bins and absent classes abound."""
    n_classes = int(rng.integers(2, 7))
    n = 1 if kind == "one image" else int(rng.integers(2, 60))
    present = rng.permutation(n_classes)[:-1] if kind == "absent class" else np.arange(n_classes)
    labels = rng.choice(present, size=n)
    if kind in ("tied", "bin edges"):  # probabilities k / 8, or k / 15, where the bins meet
        parts = 8 if kind == "tied" else metrics.N_BINS
        return labels, rng.multinomial(parts, np.ones(n_classes) / n_classes, size=n) / parts
    logits = rng.normal(size=(n, n_classes)) + 1.5 * np.eye(n_classes)[labels]
    logits *= 500 if kind == "saturated" else rng.choice([0.5, 2, 8])
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    return labels, probs.astype(kind) if kind.startswith("float") else probs


@pytest.fixture(scope="module")
def cases():
    rng = np.random.default_rng(7)
    return [random_case(rng, KINDS[i % len(KINDS)]) for i in range(240)]


# Independent implementations: each class's score and whether the image is of that class


def pairs_auroc(score, hit):
    """Share of (positive, negative) pairs in the right order; a tie is half right."""
    gap = score[hit][:, None] - score[~hit]
    return np.mean((gap > 0) + (gap == 0) / 2) if gap.size else math.nan


def sklearn_auprc(score, hit):
    return sklearn_metrics.average_precision_score(hit, score) if hit.any() else math.nan


def loop_bins(score):
    """Guo et al.'s loop over bins, (lower, upper], with 0 in the first."""
    for k in range(15):
        inside = (score > k / 15) & (score <= (k + 1) / 15)
        yield inside | (score == 0) if k == 0 else inside


def loop_ece(score, hit):
    return sum(abs(score[b].mean() - hit[b].mean()) * b.mean() for b in loop_bins(score) if b.any())


def loop_adaptive(score, hit):
    n, place = len(score), {}
    for i, rank in enumerate(rankdata(score)):
        place.setdefault(int(2 * rank - 1) * 15 // (2 * n), []).append(i)
    return sum(abs(score[b].mean() - hit[b].mean()) * len(b) / n for b in place.values())


def loop_brier(score, hit):
    return math.fsum((float(s) - float(h)) ** 2 for s, h in zip(score, hit)) / len(score)


def loop_calibration(score, hit):
    return sum((score[b] - hit[b]).mean() ** 2 * b.mean() for b in loop_bins(score) if b.any())


def loop_resolution(score, hit):
    """Murphy's resolution and the variation within bins that Stephenson et al. (2008) add to it."""
    found = 0.0
    for b in loop_bins(score):
        if b.any():
            deviations = (score[b] - score[b].mean(), hit[b] - hit[b].mean())
            within = 2 * np.mean(deviations[0] * deviations[1]) - np.mean(deviations[0] ** 2)
            found += b.mean() * ((hit[b].mean() - hit.mean()) ** 2 + within)
    return found


def pairs_ce2(score, hit):
    """The mean of d_i d_j over all pairs of different images in the same bin of equal mass."""
    n, place = len(score), {}
    for i, rank in enumerate(rankdata(score)):
        place.setdefault(int(2 * rank - 1) * 15 // (2 * n), []).append(i)
    found = 0.0
    for b in place.values():
        error = score[b] - hit[b]
        products = [error[i] * error[j] for i in range(len(b)) for j in range(len(b)) if i != j]
        found += len(b) / n * np.mean(products) if products else 0.0
    return found


ORACLES = {
    "auroc": pairs_auroc,
    "auprc": sklearn_auprc,
    "ece": loop_ece,
    "ece_adaptive": loop_adaptive,
    "brier": loop_brier,
    "brier_reliability": loop_calibration,
    "brier_resolution": loop_resolution,
    "brier_uncertainty": lambda score, hit: hit.mean() * (1 - hit.mean()),
    "ce2": pairs_ce2,
}


@pytest.mark.parametrize("metric", ORACLES)
def test_agrees_per_class_and_combined(metric, cases):
    """To 1e-12: each class's value, the macro mean over the defined classes, Brier's sum."""
    with config_context(skip_parameter_validation=True, assume_finite=True):
        for i, (labels, probs) in enumerate(cases):
            columns = probs.astype(np.float64).T
            expected = np.array([ORACLES[metric](column, labels == c) for c, column in enumerate(columns)])
            note = f"case {i}, {KINDS[i % len(KINDS)]}"
            np.testing.assert_allclose(
                metrics.per_class(labels, probs, metric), expected, rtol=0, atol=1e-12, err_msg=note
            )
            if metric.startswith("brier"):
                whole = expected.sum()
            else:
                whole = expected[~np.isnan(expected)].mean() if not np.isnan(expected).all() else math.nan
            np.testing.assert_allclose(metrics.METRICS[metric](labels, probs), whole, rtol=0, atol=1e-12, err_msg=note)


def test_agrees_where_there_is_one_value(cases):
    for i, (labels, probs) in enumerate(cases):
        exact = probs.astype(np.float64)
        confidence, hit = exact.max(axis=1), exact.argmax(axis=1) == labels
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn remarks on rows that float16 rounded
            nll = sklearn_metrics.log_loss(labels, exact, labels=range(exact.shape[1]))
        expected = {
            "ece_top_label": loop_ece(confidence, hit),
            "nll": nll,
            "accuracy": sklearn_metrics.accuracy_score(labels, exact.argmax(axis=1)),
        }
        for metric, value in expected.items():
            np.testing.assert_allclose(
                metrics.METRICS[metric](labels, probs), value, rtol=0, atol=1e-12, err_msg=f"{metric}, case {i}"
            )


def test_agrees_with_torchmetrics():
    """torchmetrics computes in float32 and closes bins on the left, which tells only on an edge."""
    import torch

    from medq import _torchvision

    _torchvision.ensure()
    from torchmetrics.functional import classification as torch_metrics

    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, size=400)
    logits = rng.normal(size=(400, 4)) + np.eye(4)[labels]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth, scores = torch.tensor(labels), torch.tensor(probs)
    binary = torch_metrics.binary_calibration_error
    one_vs_rest = [float(binary(scores[:, c].contiguous(), (truth == c).long(), n_bins=15)) for c in range(4)]
    assert metrics.per_class(labels, probs, "ece") == pytest.approx(one_vs_rest, abs=1e-6)
    for name, function, options in (
        ("ece_top_label", torch_metrics.multiclass_calibration_error, {"n_bins": 15}),
        ("auroc", torch_metrics.multiclass_auroc, {}),
        ("auprc", torch_metrics.multiclass_average_precision, {}),
    ):
        expected = float(function(scores, truth, num_classes=4, **options))
        assert metrics.METRICS[name](labels, probs) == pytest.approx(expected, abs=1e-6), name


def test_known_values():
    labels, probs = np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    assert metrics.brier_score(labels, probs) == pytest.approx((0.02 + 0.32 + 0.98) / 3)
    assert metrics.accuracy(labels, probs) == pytest.approx(2 / 3)
    assert metrics.METRICS["nll"](labels, probs) == pytest.approx(-np.log([0.9, 0.6, 0.3]).mean())
    assert metrics.expected_calibration_error(labels, probs, kind="top-label") == pytest.approx(1.2 / 3)
    assert metrics.auroc(labels, probs) == 1 and metrics.auprc(labels, probs) == 1


def test_what_is_undefined_is_nan_and_never_zero():
    labels, probs = np.zeros(3, dtype=int), np.array([[0.6, 0.4, 0.0], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    assert np.isnan(metrics.per_class(labels, probs, "auroc")).all()
    assert math.isnan(metrics.auroc(labels, probs))
    assert metrics.per_class(labels, probs, "auprc") == pytest.approx([1, math.nan, math.nan], nan_ok=True)
    assert metrics.auprc(labels, probs) == 1  # the mean over the one class that has images
    assert metrics.per_class(labels, probs, "ece")[1] == pytest.approx(0.3)  # 0.9 / 3, of no image


def test_bins_are_closed_on_the_right():
    edges = [0, 1e-9, 1 / 15, np.nextafter(1 / 15, 1), 14 / 15, 1, 1.0005]
    assert metrics.bin_index(edges).tolist() == [0, 0, 0, 1, 13, 14, 14]


def test_reliability_curve_holds_the_calibration_error(cases):
    for labels, probs in cases[:80]:
        for kind in ("top-label", "one-vs-rest"):
            curve = metrics.reliability_curve(labels, probs, n_bins=10, kind=kind)
            gaps = np.nan_to_num(np.abs(curve.confidence - curve.frequency)) * curve.count / len(labels)
            expected = metrics.expected_calibration_error(labels, probs, n_bins=10, kind=kind)
            assert gaps.sum(axis=-1).mean() == pytest.approx(expected, abs=1e-12)
            assert (curve.count.sum(axis=-1) == len(labels)).all()
            assert (np.isnan(curve.confidence) == (curve.count == 0)).all()
            assert (np.isnan(curve.frequency) == (curve.count == 0)).all()
            filled = curve.count > 0
            assert (curve.confidence[filled] <= curve.upper[filled] + 1e-3).all()
            assert (curve.confidence[filled] >= curve.lower[filled] - 1e-12).all()


def calibrated(n, n_classes=4, seed=0, temperature=1.0):
    """Labels drawn from probabilities, and these probabilities sharpened (temperature below 1) or as they are."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, n_classes))
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random(n)[:, None] > probs.cumsum(axis=1)[:, :-1]).sum(axis=1)
    powers = probs ** (1 / temperature)
    return labels, powers / powers.sum(axis=1, keepdims=True)


def test_the_debiased_error_of_a_calibrated_model_is_zero_on_average_and_the_binned_ece_is_not():
    found = [calibrated(300, seed=seed) for seed in range(200)]
    ce2 = np.array([metrics.METRICS["ce2"](*case) for case in found])
    assert abs(ce2.mean()) < 3 * ce2.std() / np.sqrt(len(ce2)) and ce2.min() < 0
    assert np.mean([metrics.expected_calibration_error(*case) for case in found]) > 0.03


def test_the_floor_is_the_ece_of_labels_drawn_from_the_model():
    """Against draws one by one, of numpy's own categorical distribution."""
    _, probs = calibrated(200, n_classes=3, seed=1, temperature=0.5)
    rng = np.random.default_rng(0)
    drawn = [np.array([rng.choice(3, p=row) for row in probs]) for _ in range(200)]
    for kind in ("one-vs-rest", "top-label"):
        floor = metrics.calibration_floor(probs, kind)
        expected = [metrics.expected_calibration_error(labels, probs, kind=kind) for labels in drawn]
        assert floor.mean() == pytest.approx(np.mean(expected), abs=4 * np.std(expected) / np.sqrt(200))
        assert np.quantile(floor, [0.025, 0.975]) == pytest.approx(np.quantile(expected, [0.025, 0.975]), rel=0.15)
        assert floor.shape == (1000,) and (metrics.calibration_floor(probs, kind) == floor).all()
        low, high = metrics.consistency_band(probs, kind, n_bins=5)
        curves = [metrics.reliability_curve(labels, probs, n_bins=5, kind=kind).frequency for labels in drawn]
        assert low.shape == curves[0].shape and (np.isnan(low) == np.isnan(curves[0])).all()
        outside = np.mean([(c < low - 1e-12) | (c > high + 1e-12) for c in curves], axis=0)
        assert outside.max() < 0.12
    with pytest.raises(ValueError, match="n_draws"):
        metrics.calibration_floor(probs, n_draws=0)


def test_summary_is_tidy_and_complete(cases):
    labels, probs = cases[0]
    classes = [f"class {c}" for c in range(probs.shape[1])]
    rows = metrics.summary(labels, probs, classes)
    assert list(rows.columns) == ["metric", "class", "value"]
    assert list(rows["metric"].unique()) == list(metrics.TABLE)
    macro = rows[rows["class"] == ""].set_index("metric")["value"]
    for name, metric in metrics.METRICS.items():
        assert macro[name] == pytest.approx(metric(labels, probs), abs=1e-15, nan_ok=True)
    for name in metrics.PER_CLASS:
        own = rows[(rows["metric"] == name) & (rows["class"] != "")]
        assert list(own["class"]) == classes
        assert own["value"].to_numpy() == pytest.approx(metrics.per_class(labels, probs, name), nan_ok=True)
    with pytest.raises(ValueError, match="2 class names were given for"):
        metrics.summary([0], [[0.2, 0.3, 0.5]], ["a", "b"])


GOOD = np.array([[0.5, 0.5], [0.1, 0.9]])


@pytest.mark.parametrize(
    "labels, probs, sentence",
    [
        ([0, 1], [[0.5, np.nan], [0.1, 0.9]], r"not finite \(1 of 2 rows, first row 0\)"),
        ([0, 1], [[0.5, 0.5], [np.inf, 0.9]], "not finite"),
        ([0, 1], [[0.5, 0.5], [0.1, 0.8]], r"does not sum to 1 in each row \(1 of 2 rows, first row 1\)"),
        ([0, 1], [[1.5, -0.5], [0.1, 0.9]], "lies outside 0 .. 1"),
        ([0, 1], [[4.2, -1.0], [0.3, 0.9]], "not logits"),
        ([0, 2], GOOD, "runs from 0 to 2"),
        ([-1, 1], GOOD, "runs from -1 to 1"),
        ([0.0, 1.0], GOOD, "must hold integers"),
        ([0, 1, 1], GOOD, "one label for each row"),
        ([[0], [1]], GOOD, "one label for each row"),
        ([0, 1], [0.5, 0.9], "at least two classes"),
        ([0, 1], [[1.0], [1.0]], "at least two classes"),
        ([0, 1], [["a", "b"], ["c", "d"]], "real numbers"),
        (np.zeros(0, dtype=int), np.zeros((0, 2)), "at least one image"),
        ([0, 1], [[0.5, 0.5], [1.0]], "y_prob must be rectangular"),
        ([0, [1]], GOOD, "y_true must be rectangular"),
    ],
)
def test_refuses_with_a_sentence(labels, probs, sentence):
    for metric in metrics.METRICS.values():
        with pytest.raises(ValueError, match=sentence) as caught:
            metric(labels, probs)
        assert str(caught.value).endswith(".")


def test_accepts_float16_rounding_and_no_more():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(7), size=20_000)
    labels = rng.integers(0, 7, size=20_000)
    metrics.validate(labels, probs.astype(np.float16))
    metrics.validate(labels, probs.astype(np.float16).astype(np.float32))
    with pytest.raises(ValueError, match="does not sum to 1"):
        metrics.validate(labels, probs * 0.998)


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: metrics.expected_calibration_error([0, 1], GOOD, kind="top"), "known are one-vs-rest"),
        (lambda: metrics.expected_calibration_error([0, 1], GOOD, n_bins=0), "whole number from 1 up"),
        (lambda: metrics.expected_calibration_error([0, 1], GOOD, n_bins=2.5), "whole number from 1 up"),
        (lambda: metrics.reliability_curve([0, 1], GOOD, n_bins=True), "n_bins must be a whole number"),
        (lambda: metrics.per_class([0, 1], GOOD, "nll"), "no value per class"),
        (lambda: metrics.per_class([0, 1], GOOD, "f1"), "known are auroc, auprc"),
        (lambda: metrics.threshold_crossings([0, 1], GOOD, GOOD, sensitivity=0), "above 0 and at most 1"),
        (lambda: metrics.label_flips([0, 1], GOOD, np.full((2, 4), 0.25)), "differ in shape"),
    ],
)
def test_refuses_wrong_options(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def two_models(n=300, n_classes=3):
    rng = np.random.default_rng(11)
    labels = rng.integers(0, n_classes, size=n)
    logits = rng.normal(size=(n, n_classes)) + 1.5 * np.eye(n_classes)[labels]
    models = [
        np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (logits, logits + 0.7 * rng.normal(size=logits.shape))
    ]
    return labels, *models


def test_threshold_crossings_against_a_loop():
    labels, reference, other = two_models()
    rows = metrics.threshold_crossings(labels, reference, other, sensitivity=0.9, classes=["a", "b", "c"])
    assert list(rows["class"]) == ["a", "b", "c"] and set(rows["n"]) == {300}
    for c, row in rows.iterrows():
        threshold, crossed = row["threshold"], {"up": 0, "down": 0}
        for before, after in zip(reference[:, c], other[:, c]):
            crossed["up"] += before < threshold <= after
            crossed["down"] += after < threshold <= before
        assert (row["crossed_up"], row["crossed_down"]) == tuple(crossed.values()) and min(crossed.values()) > 0
        for suffix, probs in (("_reference", reference), ("", other)):
            flagged = probs[:, c] >= threshold
            assert row[f"sensitivity{suffix}"] == pytest.approx(sklearn_metrics.recall_score(labels == c, flagged))
            assert row[f"specificity{suffix}"] == pytest.approx(sklearn_metrics.recall_score(labels != c, ~flagged))
            assert row[f"prevalence{suffix}"] == pytest.approx(sum(flagged) / 300)


def test_threshold_crossings_of_few_images():
    probs, other = np.array([[0.7, 0.3, 0.0], [0.4, 0.6, 0.0]]), np.array([[0.4, 0.6, 0.0], [0.4, 0.6, 0.0]])
    rows = metrics.threshold_crossings([0, 1], probs, other).set_index("class")
    assert rows.loc["2"].drop("n").isna().all() and rows.loc["2", "n"] == 2  # no image of the class, so no threshold
    assert rows.loc["0", ["crossed_down", "sensitivity_reference", "sensitivity"]].tolist() == [1, 1, 0]
    alone = metrics.threshold_crossings([0], probs[:1], other[:1]).set_index("class")
    assert math.isnan(alone.loc["0", "specificity"]) and alone.loc["0", "sensitivity"] == 0


@pytest.mark.parametrize("sensitivity", [0.1, 0.5, 0.95, 1.0])
def test_the_threshold_is_the_highest_that_reaches_the_sensitivity_asked_for(sensitivity):
    labels, reference, _ = two_models(n=90)
    rows = metrics.threshold_crossings(labels, reference, reference, sensitivity=sensitivity)
    assert (rows["sensitivity_reference"] >= sensitivity).all()
    assert (rows[["crossed_up", "crossed_down"]] == 0).all(axis=None)
    for c, threshold in enumerate(rows["threshold"]):
        assert (reference[labels == c, c] >= np.nextafter(threshold, 1)).mean() < sensitivity


def test_label_flips_against_the_confusion_of_models():
    labels, a, b = two_models()
    found = metrics.label_flips(labels, a, b)
    confusion = sklearn_metrics.confusion_matrix(a.argmax(axis=1), b.argmax(axis=1))
    assert found["flipped"] == confusion.sum() - np.trace(confusion) > 0 and found["n"] == 300
    gained = metrics.accuracy(labels, b) - metrics.accuracy(labels, a)
    assert (found["flipped_to_right"] - found["flipped_to_wrong"]) / 300 == pytest.approx(gained)
    assert 0 < found["flipped_to_right"] + found["flipped_to_wrong"] < found["flipped"]
