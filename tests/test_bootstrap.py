"""The bootstrap against a loop over scikit-learn, its equations to the letter, and its coverage."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import logit
from sklearn import config_context
from sklearn.metrics import average_precision_score, roc_auc_score

from medq import bootstrap, metrics
from medq.groups import connected

RESAMPLES = 70  # more than one chunk of 64


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def two_models(n=120, n_classes=4, seed=0, ties=False):
    """Labels, two models' probabilities and lesions of 1 to 4 images; `ties` rounds to k / 10."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, size=n - n_classes)])
    logits = rng.normal(size=(n, n_classes)) + 1.5 * np.eye(n_classes)[labels]
    a, b = softmax(logits), softmax(logits + rng.normal(size=logits.shape))
    if ties:
        a, b = (np.array([rng.multinomial(10, row) for row in probs]) / 10 for probs in (a, b))
    groups = np.repeat([f"lesion {i}" for i in range(n)], rng.integers(1, 5, size=n))[:n]
    return labels, a.astype(np.float32), b.astype(np.float32), rng.permutation(groups)


def resampled(n, groups=None, n_resamples=RESAMPLES, seed=42):
    """The same resamples as image numbers."""
    return [
        np.repeat(np.arange(n), counts)
        for counts in bootstrap.resample_counts(n, n_resamples, groups=groups, seed=seed)
    ]


def on_its_scale(metric, value, draws, size):
    """Ends of the interval of a value that rests on `size` groups, written out."""
    low, high = np.percentile(draws, [2.5, 97.5])
    half = (high - low) / 2 * stats.t(size - 1).ppf(0.975) / 1.959964
    if metric in ("brier", "nll"):
        return [np.exp(np.log(value) + side * half / value) for side in (-1, 1)]
    middle, slope = np.log(value / (1 - value)), 1 / value + 1 / (1 - value)
    return [1 / (1 + np.exp(-(middle + side * half * slope))) for side in (-1, 1)]


def by_sklearn(metric, labels, probs):
    """Macro mean over the classes that are present, by scikit-learn."""
    function = {"auprc": average_precision_score, "auroc": roc_auc_score}[metric]
    with config_context(skip_parameter_validation=True, assume_finite=True):
        return np.mean([function(labels == c, probs[:, c]) for c in np.unique(labels)])


# The resamples


@pytest.mark.parametrize("metric", ["auprc", "auroc"])
@pytest.mark.parametrize("grouped, ties", [(False, False), (True, True)])
def test_replicates_equal_the_loop_over_sklearn(metric, grouped, ties):
    labels, a, b, groups = two_models(ties=ties)
    groups = groups if grouped else None
    result = bootstrap.paired(labels, a, b, metric, n_resamples=RESAMPLES, groups=groups)

    def difference(i):
        return 100 * (by_sklearn(metric, labels[i], a[i]) - by_sklearn(metric, labels[i], b[i]))

    expected = [difference(i) for i in resampled(len(labels), groups)]
    np.testing.assert_allclose(result.replicates, expected, rtol=0, atol=1e-12)
    assert result.delta == pytest.approx(difference(slice(None)))


@pytest.mark.parametrize("metric", bootstrap.TESTED)
@pytest.mark.parametrize("ties", [False, True])
def test_replicates_equal_the_metric_on_each_resample(metric, ties):
    """Every metric by name, each class and combined, among them a class that many resamples lack."""
    labels, a, b, groups = two_models(n=40, n_classes=5, ties=ties)
    labels[labels == 4] = 0
    labels[7] = 4
    values = bootstrap.replicates(labels, [a, b], [metric], n_resamples=RESAMPLES, groups=groups)[metric]
    for k, probs in enumerate((a, b)):
        drawn = resampled(40, groups)
        assert any(4 not in labels[i] for i in drawn)
        expected = [metrics.METRICS[metric](labels[i], probs[i]) for i in drawn]
        np.testing.assert_allclose(metrics.combine(metric, values[:, k]), expected, rtol=0, atol=1e-12)
        if metric in metrics.PER_CLASS:
            expected = [metrics.per_class(labels[i], probs[i], metric) for i in drawn]
            np.testing.assert_allclose(values[:, k], expected, rtol=0, atol=1e-12)


def test_resamples_are_draws_with_replacement():
    counts = np.array(list(bootstrap.resample_counts(50, 20_000, seed=1))).astype(int)
    assert (counts.sum(axis=1) == 50).all()
    # each count is binomial(50, 1/50): mean 1, variance 0.98; two counts of a resample have correlation -1/49
    assert counts.mean(axis=0) == pytest.approx(1, abs=5 * np.sqrt(0.98 / 20_000))
    assert counts.var(axis=0).mean() == pytest.approx(0.98, abs=0.01)
    correlation = np.corrcoef(counts.T)[np.triu_indices(50, 1)]
    assert correlation.mean() == pytest.approx(-1 / 49, abs=0.002)
    assert correlation.std() == pytest.approx(1 / np.sqrt(20_000), rel=0.1)
    assert (counts == 0).mean() == pytest.approx((49 / 50) ** 50, abs=0.002)


def test_groups_come_along_whole():
    *_, groups = two_models()
    names, first, number = np.unique(groups, return_index=True, return_inverse=True)
    for counts in bootstrap.resample_counts(len(groups), RESAMPLES, groups=groups):
        assert (counts == counts[first][number]).all()
        assert counts[first].sum() == len(names)


def test_draws_depend_on_the_seed_alone(monkeypatch):
    labels, a, b, groups = two_models()
    reference = bootstrap.paired_auprc(labels, a, b, n_resamples=300, groups=groups)
    for threads in (1, 3):
        again = bootstrap.paired_auprc(labels, a, b, n_resamples=300, groups=groups, threads=threads)
        assert (again.replicates == reference.replicates).all() and again.p_value == reference.p_value
    shorter = bootstrap.paired_auprc(labels, a, b, n_resamples=70, groups=groups)
    assert (shorter.replicates == reference.replicates[:70]).all()
    other = bootstrap.paired_auprc(labels, a, b, n_resamples=300, groups=groups, seed=43)
    assert not np.isin(other.replicates, reference.replicates).any()
    monkeypatch.setattr(bootstrap, "DRAWN_AT_ONCE", 500)  # as with images too many to draw all lanes at once
    piecewise = bootstrap.paired_auprc(labels, a, b, n_resamples=300, groups=groups)
    assert (piecewise.replicates == reference.replicates).all()


# The statistics


def test_equations_2_and_3_to_the_letter_and_the_p_value_that_is_tested():
    for seed in range(5):
        labels, a, b, _ = two_models(seed=seed)
        result = bootstrap.paired_auprc(labels, a, b, n_resamples=200)
        at_least_0 = sum(1 for difference in result.replicates if difference >= 0) / 200
        below_0 = sum(1 for difference in result.replicates if difference < 0) / 200
        assert result.p_equation3 == min(1, 2 * min(at_least_0, below_0))
        extreme = min(np.sum(result.replicates >= 0), np.sum(result.replicates <= 0))
        assert result.p_value == min(1, 2 * (1 + extreme) / 201)
        assert (result.low, result.high) == pytest.approx(np.percentile(result.replicates, [2.5, 97.5]))
    tie = bootstrap.difference("auprc", 0.0, np.array([0.0, -1.0, 1.0, 2.0]))
    assert tie.p_equation3 == 0.5 and tie.p_value == 1  # equation 3 counts 0 as not below


@pytest.mark.parametrize("backbones", [1, 3])
def test_a_tie_is_a_tie_whatever_its_rounding(backbones):
    """The same number of right images in a resample, counted in whole numbers, is a tie of accuracies."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    models = softmax(rng.normal(size=(180 * backbones, 3))).reshape(2, backbones, 90, 3)
    right = (models.argmax(axis=-1) == labels).astype(int)
    gain = np.array([(right[0] - right[1]).sum(axis=0) @ c.astype(int) for c in bootstrap.resample_counts(90, 2000)])
    assert (gain == 0).sum() > 20
    result = bootstrap.paired(labels, list(models[0]), list(models[1]), "accuracy", n_resamples=2000)
    assert result.p_value == min(1, 2 * (1 + min((gain >= 0).sum(), (gain <= 0).sum())) / 2001)
    assert result.p_equation3 == min(1, 2 * min((gain >= 0).mean(), (gain < 0).mean()))


def test_methods_that_agree_everywhere():
    labels, a, _, _ = two_models()
    result = bootstrap.paired_auprc(labels, a, a, n_resamples=RESAMPLES)
    assert (result.replicates == 0).all() and result.delta == result.low == result.high == 0
    assert result.p_equation3 == 0 and result.p_value == 1
    worst = bootstrap.paired_auprc(labels, a, softmax(np.zeros_like(a)), n_resamples=199)
    assert worst.p_equation3 == 0 and worst.p_value == pytest.approx(2 / 200)


@pytest.mark.parametrize("metric", bootstrap.TESTED)
def test_the_interval_of_a_value_is_symmetric_on_its_scale(metric):
    labels, a, b, groups = two_models()
    of_class = [len({g for g, y in zip(groups, labels) if (y == c) == own}) for c in range(4) for own in (True, False)]
    size = min(of_class) if metric in bootstrap.RANKED else len(set(groups))
    for models in (a, [a, b]):
        found = bootstrap.interval(labels, models, metric, groups=groups, n_resamples=RESAMPLES)
        assert (found.low, found.high) == pytest.approx(on_its_scale(metric, found.value, found.replicates, size))
        assert found.low < found.value < found.high


def test_a_value_at_the_end_of_its_scale_has_no_interval():
    labels = np.arange(90) % 3
    perfect = np.eye(3)[labels]
    for metric, value in (("auroc", 1), ("auprc", 1), ("accuracy", 1), ("brier", 0)):
        found = bootstrap.interval(labels, perfect, metric, n_resamples=RESAMPLES)
        assert found.value == value and np.isnan([found.low, found.high]).all()


def test_pooling_is_the_mean_over_pairs_on_the_same_resamples():
    models = [two_models(seed=s)[1:3] for s in range(3)]
    labels = two_models(seed=0)[0]
    first, second = [a for a, _ in models], [b for _, b in models]
    pooled = bootstrap.paired_auprc(labels, first, second, n_resamples=RESAMPLES)
    single = [bootstrap.paired_auprc(labels, a, b, n_resamples=RESAMPLES) for a, b in models]
    np.testing.assert_allclose(pooled.replicates, np.mean([r.replicates for r in single], axis=0), atol=1e-12)
    assert pooled.delta == pytest.approx(np.mean([r.delta for r in single]))
    stacked = bootstrap.paired_auprc(labels, np.stack(first), np.stack(second), n_resamples=RESAMPLES)
    assert (stacked.replicates == pooled.replicates).all()


def test_a_resample_without_a_class_does_not_change_the_quantity():
    """It is left out, so that every replicate is a mean over the same classes."""
    labels, a, b, _ = two_models(n=30, n_classes=3)
    labels[labels == 2] = 0
    labels[3:5] = 2
    absent = np.array([2 not in labels[i] for i in resampled(30)])
    assert 0 < absent.sum() < RESAMPLES
    result = bootstrap.interval(labels, a, "auprc", n_resamples=RESAMPLES)
    assert (np.isnan(result.replicates) == absent).all() and result.n_defined == (~absent).sum()
    ends = on_its_scale("auprc", result.value, result.replicates[~absent], 2)
    assert (result.low, result.high) == pytest.approx(ends)
    pair = bootstrap.paired_auprc(labels, a, b, n_resamples=RESAMPLES)
    assert pair.n_defined == (~absent).sum()


def test_what_is_undefined_stays_nan():
    labels, probs = np.zeros(5, dtype=int), np.full((5, 2), 0.5)
    result = bootstrap.paired(labels, probs, probs, "auroc", n_resamples=10)
    assert result.n_defined == 0
    assert np.isnan([result.delta, result.low, result.high, result.p_value, result.p_equation3]).all()
    one_image = bootstrap.paired([1], [[0.3, 0.7]], [[0.2, 0.8]], "brier", n_resamples=10)
    assert one_image.low == one_image.high == pytest.approx(one_image.delta) == pytest.approx(10)
    # three images, one of another class: AUROC is undefined wherever that one is missing or alone
    some = bootstrap.paired(
        [0, 0, 1], [[0.9, 0.1], [0.4, 0.6], [0.5, 0.5]], np.full((3, 2), 0.5), "auroc", n_resamples=500
    )
    assert some.n_defined == np.sum(~np.isnan(some.replicates)) == pytest.approx(500 * (1 - 9 / 27), abs=50)
    assert (some.low, some.high) == pytest.approx(tuple(np.nanpercentile(some.replicates, [2.5, 97.5])))
    assert some.p_equation3 == 2 * min(np.sum(some.replicates >= 0), np.sum(some.replicates < 0)) / some.n_defined


OF_INTERVALS = "backbone regime metric class value low high between_std n_models trainings".split()


def test_tables_hold_the_intervals_and_differences_of_each_model(monkeypatch):
    monkeypatch.setattr(bootstrap, "FEWEST", {})  # the classes of this sample are small
    monkeypatch.setattr(bootstrap, "NEAR_ONE", dict.fromkeys(bootstrap.RANKED, {0: 1}))
    labels, a, b, groups = two_models(n=200)
    options = {"n_resamples": RESAMPLES, "groups": groups}
    models = {("x", "fp32"): a, ("x", "ptq"): b, ("y", "fp32"): b, ("y", "ptq"): a, ("z", "fp32"): b}
    rows, differences = bootstrap.tables(labels, models, [("fp32", "ptq")], classes=["k", "l", "m", "n"], **options)
    assert list(rows.columns) == OF_INTERVALS and set(rows["metric"]) == {*bootstrap.TESTED, *bootstrap.FLOORS}
    rows = rows.set_index(["backbone", "regime", "metric", "class"])
    for metric in bootstrap.TESTED:
        for backbone, regime, probs in (("x", "fp32", a), ("x", "ptq", b), ("mean", "fp32", [a, b, b])):
            alone = bootstrap.interval(labels, probs, metric, **options)
            row = rows.loc[(backbone, regime, metric, "")]
            assert tuple(row[["value", "low", "high"]]) == pytest.approx((alone.value, alone.low, alone.high))
        points = [metrics.METRICS[metric](labels, probs) for probs in (a, b, b)]
        assert rows.loc[("mean", "fp32", metric, ""), "between_std"] == pytest.approx(np.std(points, ddof=1))
        assert rows.loc[("mean", "fp32", metric, ""), "n_models"] == 3
        for backbone, first, second in (("x", a, b), ("all", [a, b], [b, a])):
            d = bootstrap.paired(labels, first, second, metric, **options)
            row = differences.query("backbone == @backbone and metric == @metric").iloc[0]
            found = row[["delta_pp", "low_pp", "high_pp", "p_value", "p_equation3"]].astype(float).tolist()
            assert found == pytest.approx([d.delta, d.low, d.high, d.p_value, d.p_equation3], abs=1e-9)
            assert row["n_models"] == (2 if backbone == "all" else 1) and row["trainings"] == 1
    floor, drawn = rows.loc[("mean", "fp32", "ece_floor", "")], [metrics.calibration_floor(p) for p in (a, b, b)]
    assert floor["value"] == pytest.approx(np.mean(drawn))
    assert floor["high"] == pytest.approx(np.quantile(np.mean(drawn, axis=0), 0.975))
    for metric in ("auprc", "brier"):
        point = [rows.loc[("x", "ptq", metric, name), "value"] for name in "klmn"]
        assert point == pytest.approx(metrics.per_class(labels, b, metric))
        drawn = np.transpose([metrics.per_class(labels[i], b[i], metric) for i in resampled(200, groups)])
        for c, name in enumerate("klmn"):
            size = len(set(groups if metric == "brier" else groups[labels == c]))
            ends = on_its_scale(metric, point[c], drawn[c], size)
            assert tuple(rows.loc[("x", "ptq", metric, name), ["low", "high"]]) == pytest.approx(ends)


def test_a_class_of_few_groups_has_no_interval():
    """The rarest class has `groups` lesions of three images each."""
    labels, a, _, _ = two_models(n=300, n_classes=3)
    models = {("x", "fp32"): a, ("x", "ptq"): a}
    for groups in (14, 15, 59, 60):
        labels = np.r_[np.full(groups, 2), np.arange(300 - groups) % 2]
        threefold, lesions = np.repeat([labels, np.arange(300)], 3, axis=1)
        probs = {key: np.repeat(p, 3, axis=0) for key, p in models.items()}
        rows, pair = bootstrap.tables(threefold, probs, [("fp32", "ptq")], n_resamples=RESAMPLES, groups=lesions)
        rows = rows[rows["backbone"] == "x"].set_index(["metric", "class"]).sort_index()
        for metric, fewest in (("auprc", 15), ("auroc", 60)):
            assert rows.loc[(metric, ""), "low"].notna().eq(groups >= fewest).all()
            assert rows.loc[(metric, ""), "value"].notna().all()
            given = pair[pair["metric"] == metric][["low_pp", "high_pp", "p_value"]].notna()
            assert given.eq(groups >= fewest).all(axis=None)
        assert rows.loc[("auprc", "2"), "low"].notna().eq(groups >= 15).all()
        assert rows.loc["auroc"].drop("")["low"].isna().all()  # of one class the ROC-AUC never has one
        assert rows["low"].drop(["auroc", "auprc"]).notna().all()


def two_classes(rng, labels, noise):
    """Probabilities [n, 2] of a model that is the nearer to perfect the less noise it has."""
    score = np.clip(labels / 2 + 0.25 + noise * rng.normal(size=len(labels)), 0.001, 0.999)
    return np.column_stack([1 - score, score])


@pytest.mark.parametrize("metric, end", [("auroc", 0.998), ("auprc", 1 - 0.75 / 200)])
@pytest.mark.parametrize("noise, near_one", [(0.17, False), (0.1, True)])
def test_a_mean_near_one_has_no_interval_and_no_difference(metric, end, noise, near_one):
    """Two classes of 200 images: AUPRC needs that number times 1 - AUPRC to be 0.75, or 2.5 for one class."""
    rng, labels = np.random.default_rng(4), np.arange(400) % 2
    models = {("x", regime): two_classes(rng, labels, noise) for regime in ("fp32", "ptq")}
    assert (metrics.METRICS[metric](labels, models["x", "fp32"]) > end) == near_one
    rows, pair = bootstrap.tables(labels, models, [("fp32", "ptq")], n_resamples=RESAMPLES)
    levels = rows.query("metric == @metric and `class` == '' and regime == 'fp32'")
    assert len(levels) == 2 and levels["low"].isna().eq(near_one).all()  # of the backbone and of the mean over one
    assert pair.query("metric == @metric")["low_pp"].isna().eq(near_one).all()
    if metric == "auprc":
        classes = rows.query("metric == @metric and `class` != ''")
        assert classes["low"].notna().eq(200 * (1 - classes["value"]) >= 2.5).all()


@pytest.mark.parametrize(
    "wrong, level, pair", [(4, False, False), (5, True, False), (9, True, False), (10, True, True)]
)
def test_means_over_images_need_misclassified_groups(wrong, level, pair):
    """The worse of two models takes `wrong` lesions, of three images each, for another class; the other one fewer."""
    labels, right = np.arange(200) % 2, np.full((200, 2), 0.2)
    right[np.arange(200), labels] = 0.8
    models = {}
    for regime, n in (("fp32", wrong - 1), ("ptq", wrong)):
        probs = right.copy()
        probs[:n] = probs[:n, ::-1]
        models["x", regime] = np.repeat(probs, 3, axis=0)
    labels, lesions = np.repeat([labels, np.arange(200)], 3, axis=1)
    rows, differences = bootstrap.tables(labels, models, [("fp32", "ptq")], n_resamples=RESAMPLES, groups=lesions)
    means = ["brier", "nll", "accuracy"]
    found = rows[rows["metric"].isin(means) & (rows["regime"] == "ptq")]
    assert found["low"].notna().eq(level).all() and len(found) == 8  # Brier of each class, too; twice the whole
    found = differences[differences["metric"].isin(means)]
    assert found["p_value"].notna().eq(pair).all() and len(found) == 6


def test_a_class_without_images_takes_no_interval_away():
    labels, a, b, _ = two_models(n=300, n_classes=3)
    wider = {key: np.column_stack([p, np.full(300, 1e-3)]) for key, p in (("fp32", a), ("ptq", b))}
    models = {("x", key): p / p.sum(axis=1, keepdims=True) for key, p in wider.items()}
    rows, pair = bootstrap.tables(labels, models, [("fp32", "ptq")], n_resamples=RESAMPLES)
    ranked = rows[rows["metric"].isin(bootstrap.RANKED) & (rows["class"] == "")]
    assert ranked["low"].notna().all() and pair["p_value"].notna().all()
    found = bootstrap.interval(labels, models["x", "fp32"], n_resamples=RESAMPLES)
    assert found.low < found.value < found.high


def test_auprc_near_one_has_differences_where_a_class_is_large_or_a_model_is_not_near():
    rng = np.random.default_rng(1)
    for rarest in (59, 60):
        labels = (np.arange(400) < rarest).astype(int)
        models = {(b, r): two_classes(rng, labels, 0.17) for b in "xyz" for r in ("fp32", "ptq")}
        models["y", "ptq"] = two_classes(rng, labels, 0.4)
        lower = {b: min(metrics.auprc(labels, models[b, r]) for r in ("fp32", "ptq")) for b in "xyz"}
        pooled = np.mean([metrics.auprc(labels, models[b, "ptq"]) for b in "xyz"])
        assert lower["y"] < pooled < 0.9 < min(lower["x"], lower["z"]) < 0.985
        _, pair = bootstrap.tables(labels, models, [("fp32", "ptq")], n_resamples=RESAMPLES)
        pair = pair.query("metric == 'auprc'").set_index("backbone")
        numbers = pair[["low_pp", "high_pp", "p_value", "p_equation3"]].notna()
        assert numbers.loc[["y", "all"]].all(axis=None) and numbers.loc[["x", "z"]].eq(rarest == 60).all(axis=None)
        assert pair["delta_pp"].notna().all()
        near = {key: p for key, p in models.items() if key[0] != "y"}
        _, pair = bootstrap.tables(labels, near, [("fp32", "ptq")], n_resamples=RESAMPLES)
        assert pair.query("metric == 'auprc'")["p_value"].notna().eq(rarest == 60).all()  # pooled as well


def test_several_trainings_widen_intervals_by_their_spread():
    labels, a, b, _ = two_models(n=200)
    options = {"n_resamples": 2000}
    one, _ = bootstrap.tables(labels, {("x", "fp32"): a}, **options)
    models = {("x", "fp32"): dict.fromkeys((42, 43, 44), a), ("x", "ptq"): dict.fromkeys((42, 43, 44), b)}
    same, pairs = bootstrap.tables(labels, models, [("fp32", "ptq")], **options)
    same = same[same["regime"] == "fp32"].reset_index(drop=True)
    pd.testing.assert_frame_equal(one.drop(columns="trainings"), same.drop(columns="trainings"))
    assert set(same.loc[same["metric"].isin(bootstrap.TESTED), "trainings"]) == set(pairs["trainings"]) == {3}
    models = {("x", "fp32"): {42: a, 43: b}, ("x", "ptq"): {42: b, 43: a}}
    spread, moved = bootstrap.tables(labels, models, [("fp32", "ptq")], **options)
    wide, narrow = (f.query("backbone == 'x' and metric == 'auprc' and `class` == ''").iloc[0] for f in (spread, one))
    gap = abs(metrics.auprc(labels, a) - metrics.auprc(labels, b)) / 2
    # Student's t with one degree of freedom: its 97.5th percentile is 12.7; on the scale of the logit
    reach = 12.7 * gap / wide["value"] / (1 - wide["value"])
    found = [logit(wide[end]) - logit(wide["value"]) for end in ("low", "high")]
    assert found == pytest.approx([-reach, reach], rel=0.2) and wide["value"] != narrow["value"]
    row = moved.query("backbone == 'x' and metric == 'auprc'").iloc[0]
    assert row["delta_pp"] == pytest.approx(0, abs=1e-9) and row["p_value"] > 0.2
    gaps = [
        (bootstrap.replicates(labels, [p, q], ["auprc"], **options)["auprc"]).mean(axis=2) for p, q in ((a, b), (b, a))
    ]
    ends = np.percentile(100 * np.mean([g[:, 0] - g[:, 1] for g in gaps], axis=0), [2.5, 97.5])
    assert tuple(row[["images_low_pp", "images_high_pp"]]) == pytest.approx(tuple(ends), abs=1e-9)
    only = pairs.query("backbone == 'x' and metric == 'auprc'").iloc[0]  # the same model three times: no spread
    assert (only["images_low_pp"], only["images_high_pp"]) == pytest.approx((only["low_pp"], only["high_pp"]))


def test_only_trainings_of_the_same_seed_are_compared():
    labels, a, b, _ = two_models(n=200)
    models = {("x", "fp32"): {42: a, 43: b}, ("x", "ptq"): {43: a}, ("x", "qat"): {44: a}}
    _, found = bootstrap.tables(labels, models, [("fp32", "ptq"), ("fp32", "qat")], n_resamples=RESAMPLES)
    assert set(found["method_b"]) == {"ptq"} and set(found["trainings"]) == {1}
    row = found.query("backbone == 'x' and metric == 'brier'").iloc[0]
    alone = bootstrap.paired(labels, b, a, "brier", n_resamples=RESAMPLES)
    assert (row["delta_pp"], row["low_pp"], row["high_pp"]) == pytest.approx((alone.delta, alone.low, alone.high))


def test_holm_within_families():
    frame = pd.DataFrame({"backbone": ["x", "y", "all", "x"], "metric": ["auprc", "auprc", "auprc", "auroc"]})
    frame = frame.assign(method_a="fp32", method_b="ptq", p_value=[0.01, 0.04, 0.03, 0.02])
    assert bootstrap.with_holm(frame)["p_holm"].tolist() == pytest.approx([0.02, 0.04, 0.03, 0.02])
    frame["method_b"] = ["ptq", "ptq.fake-quant", "ptq", "ptq"]
    assert bootstrap.with_holm(frame)["p_holm"].tolist() == pytest.approx([0.01, 0.04, 0.03, 0.02])


def test_images_that_are_connected_are_one_group():
    """A lesion, an audit group and a chain of both, in any order, against a plain search."""
    ids, lesions = list("abcdefgh"), ["1", "1", "2", "3", "4", "5", "5", "6"]
    audit = pd.DataFrame({"image_id": list("bchzh"), "group_id": [0, 0, 7, 7, 9]})
    groups = connected(ids, lesions, audit)
    found = [sorted(i for i, g in zip(ids, groups) if g == k) for k in dict.fromkeys(groups)]
    assert list(map("".join, found)) == ["abc", "d", "e", "fg", "h"]
    assert len(set(connected(ids))) == 8
    with pytest.raises(ValueError, match="groups"):
        connected(ids, lesions[:3])


def test_holm():
    p_values = [0.01, 0.04, 0.03, 0.005]
    assert bootstrap.holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert bootstrap.holm([0.5, np.nan, 0.6]) == pytest.approx([1, np.nan, 1], nan_ok=True)
    assert bootstrap.holm([]).shape == (0,) and bootstrap.holm([0.02]) == pytest.approx([0.02])
    rng = np.random.default_rng(0)
    for _ in range(50):  # by definition: the largest of the stepwise products up to each rank
        p_values = rng.random(7).round(1)
        ranked = np.sort(p_values)
        expected = [min(1, max((7 - j) * ranked[j] for j in range(7) if ranked[j] <= p)) for p in p_values]
        assert bootstrap.holm(p_values) == pytest.approx(expected)


# Refusals, and the compiled kernels' cache


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"prob_b": np.full((10, 3), 1 / 3)}, "differ in shape"),
        ({"prob_a": np.full((10, 2), 0.7)}, "does not sum to 1"),
        ({"y_true": np.full(10, 2)}, "runs from 2 to 2"),
        ({"prob_a": [np.full((10, 2), 0.5)] * 2}, "go in pairs"),
        ({"prob_a": [], "prob_b": []}, "no model was given"),
        ({"metric": "f1"}, "known are auroc, auprc"),
        ({"n_resamples": 0}, "whole number from 1 up"),
        ({"groups": np.arange(9)}, "one group for each of 10 images"),
        ({"groups": ["a"] * 9 + [None]}, "groups is missing for 1 of 10 images"),
        ({"groups": [np.nan] * 3 + [1.0] * 7}, "groups is missing for 3 of 10 images"),
        ({"groups": [np.nan] * 3 + ["a"] * 7}, "groups is missing for 3 of 10 images"),
        ({"groups": [{}] * 10}, "numbers or texts"),
        ({"prob_a": [[[0.5, 0.5], [0.5]]]}, "y_prob must be rectangular"),
        ({"n_resamples": True}, "n_resamples must be a whole number from 1 up"),
        ({"threads": -1}, "threads must be a whole number from 1 up"),
        ({"threads": "x"}, "threads must be a whole number from 1 up"),
        ({"seed": "x"}, "seed must be a whole number from 0 up"),
        ({"seed": -1}, "seed must be a whole number from 0 up"),
    ],
)
def test_refuses_with_a_sentence(change, sentence):
    even = np.full((10, 2), 0.5)
    arguments = {"y_true": np.arange(10) % 2, "prob_a": even, "prob_b": even, "n_resamples": 10} | change
    with pytest.raises(ValueError, match=sentence) as caught:
        bootstrap.paired(**arguments)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: bootstrap.interval([0, 1], np.full((2, 2), 0.5), "ece"), "metrics that have"),
        (lambda: bootstrap.holm(0.5), "must be a list"),
        (lambda: bootstrap.holm([0.5, 1.5, np.nan]), "run from 0.5 to 1.5"),
        (lambda: bootstrap.resample_counts(0, 5), "n must be a whole number from 1 up"),
    ],
)
def test_refuses_other_arguments_with_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_groups_are_told_apart_by_what_they_are():
    mixed, apart = ([1] * 5 + ["1"] * 5, ["a"] * 5 + ["b"] * 5)
    same = [np.array(list(bootstrap.resample_counts(10, 50, groups=groups))) for groups in (mixed, apart)]
    assert (same[0] == same[1]).all() and len(np.unique(same[0])) > 1


def test_works_where_no_cache_can_be_written(tmp_path):
    """Neither the package folder nor a home folder takes the kernels' cache."""
    package = tmp_path / "medq"
    package.mkdir()
    for name in ("__init__.py", "bootstrap.py", "groups.py", "metrics.py", "paths.py", "provenance.py"):
        shutil.copy(Path(bootstrap.__file__).with_name(name), package)
    (package / "__pycache__").write_text("in the way")
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment |= {"HOME": os.devnull, "XDG_CACHE_HOME": os.devnull, "PYTHONPATH": str(tmp_path)}
    program = (
        "from medq import bootstrap as b; print(b.__file__); p = [[.8, .2], [.1, .9]]; "
        "print(b.paired([0, 1], p, p, 'brier', n_resamples=9).delta)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(package / "bootstrap.py"), "0.0"]
