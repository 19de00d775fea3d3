"""How often intervals, p-values and gates do what they state, by simulation.

    python tests/simulations.py [repetitions [run ...]]

Writes book/_data/coverage.csv, which the page *Metrics* prints: quantity, condition, n (images), nominal and found
rate, repetitions. With names of `RUNS` only their rows are replaced. Worlds are made of logits: a class signal plus
noise, sharpened by a temperature (below 1: overconfident). The true values are those of a population of 400,000 images.
"""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from scipy import stats
from scipy.special import expit

from medq import advise, attention, bootstrap, metrics, timing
from medq.claims import evidence

FILE = Path(__file__).parents[1] / "book" / "_data" / "coverage.csv"
COLUMNS = ["quantity", "condition", "n", "nominal", "found", "repetitions"]
SIZES = (300, 1300, 2000)
RESAMPLES = 1000
AT_LEAST = "interval of at least 95 %"  # what is combined as if independent, or as if the same, may be too wide
EVEN = (0.25, 0.25, 0.25, 0.25)
RARE = (0.05, 0.15, 0.3, 0.5)
NAMES = {"auroc": "ROC-AUC", "auprc": "AUPRC", "brier": "Brier", "nll": "NLL", "accuracy": "accuracy"}


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def world(rng, n, prior=EVEN, temperature=0.7, noise=(0.0, 0.7), strength=1.7):
    """Labels and one model's probabilities for each level of noise, on the same images."""
    labels = rng.choice(len(prior), size=n, p=prior)
    signal = 1.2 * rng.normal(size=(n, len(prior))) + strength * np.eye(len(prior))[labels]
    logits = [np.log(prior) + 1.2 * (signal + level * rng.normal(size=signal.shape)) for level in noise]
    return labels, [softmax(z / temperature) for z in logits]


@cache
def truth(prior=EVEN, noise=(0.0, 0.7), strength=1.7, column=None):
    """{metric: value of each model, or of one of its classes} in the population."""
    labels, models = world(np.random.default_rng(99), 400_000, prior, noise=noise, strength=strength)
    if column is None:
        return {k: np.array([metrics.METRICS[k](labels, p) for p in models]) for k in bootstrap.TESTED}
    return {k: np.array([metrics.per_class(labels, p, k)[column] for p in models]) for k in bootstrap.RANKED}


def rate(quantity, condition, n, hits, nominal=0.95):
    """A row of the table: how often `hits` [repetitions] are true."""
    return quantity, condition, n, nominal, float(np.mean(hits)), len(hits)


def drawn(labels, models, names, *seed):
    """{metric: replicates [resamples, models]} of metrics combined over classes."""
    found = bootstrap.replicates(labels, models, names, n_resamples=RESAMPLES, seed=seed, threads=1)
    return {metric: bootstrap._macro(metric, values) for metric, values in found.items()}


def covers(metric, labels, probs, draws, true, size):
    """Whether the interval of one model's value, of as many groups, holds the true value."""
    found = bootstrap._interval(metric, metrics.METRICS[metric](labels, probs), draws, size)
    return found.low <= true <= found.high


def pair_covers(draws, true):
    """Whether the percentiles of the difference of two models hold the true one."""
    low, high = np.nanquantile(draws[:, 0] - draws[:, 1], [0.025, 0.975])
    return low <= true[0] - true[1] <= high


def intervals(n, repetitions, prior=EVEN, strength=1.7, seed=1):
    """Coverage of the 95 % intervals of one model and of a paired difference, for every tested metric."""
    rng, true = np.random.default_rng([seed, n]), truth(prior, strength=strength)
    hits = {(metric, kind): [] for metric in bootstrap.TESTED for kind in ("one model", "paired difference")}
    for k in range(repetitions):
        labels, models = world(rng, n, prior, strength=strength)
        sizes = bootstrap._sizes(labels, len(prior), None)
        for metric, draws in drawn(labels, models, bootstrap.TESTED, seed, n, k).items():
            own = metric, labels, models[0], draws[:, 0], true[metric][0], sizes[metric].min()
            hits[metric, "one model"].append(covers(*own))
            hits[metric, "paired difference"].append(pair_covers(draws, true[metric]))
    condition = "four classes, even" if prior == EVEN else "four classes, rarest 5 %"
    if strength > 1.7:
        condition += ", accuracy " + " and ".join(f"{v:.3f}" for v in true["accuracy"])
    rows, rarest, wrong = [], n * min(prior), n * (1 - true["accuracy"])
    for (metric, kind), hit in hits.items():
        values = true[metric]
        if kind == "one model":
            holds = bootstrap.level_holds(metric, values[0], rarest, wrong[0])
        else:
            holds = bootstrap.difference_holds(metric, values, rarest, max(wrong))
        nominal = 0.95 if holds else np.nan
        rows.append(rate(f"95 % interval, {NAMES[metric]}", f"{kind}; {condition}", n, hit, nominal))
    return rows


def p_values(n, repetitions, seed=2):
    """Rate of p < 0.05 between two methods of equal quality."""
    rng, hits = np.random.default_rng([seed, n]), {"auprc": [], "brier": []}
    for k in range(repetitions):
        labels, models = world(rng, n, noise=(0.7, 0.7))
        for metric, draws in drawn(labels, models, list(hits), seed, n, k).items():
            hits[metric].append(bootstrap.difference(metric, 0.0, draws[:, 0] - draws[:, 1]).p_value < 0.05)
    what = "paired, methods of equal quality"
    return [rate(f"p < 0.05, {NAMES[metric]}", what, n, hit, 0.05) for metric, hit in hits.items()]


def duplicates(n, repetitions, seed=3):
    """Coverage for AUPRC where a third of the images have two copies, drawn together and drawn alone."""
    rng, value, hits = np.random.default_rng([seed, n]), truth()["auprc"][0], ([], [])
    for k in range(repetitions):
        labels, (p, _) = world(rng, n * 3 // 5)
        copies = np.where(np.arange(len(labels)) % 3 == 0, 3, 1)
        y, p, groups = (np.repeat(x, copies, axis=0) for x in (labels, p, np.arange(len(labels))))
        for i, member in enumerate((groups, None)):
            found = bootstrap.interval(y, p, n_resamples=RESAMPLES, groups=member, seed=[seed, n, k], threads=1)
            hits[i].append(found.low <= value <= found.high)
    known = (("copies are groups", 0.95), ("copies count as images", np.nan))
    what = "a third of the images in threefold"
    return [rate("95 % interval, AUPRC", f"{what}; {how}", n, hit, level) for (how, level), hit in zip(known, hits)]


def trainings(n, repetitions, count, seed=4):
    """Coverage for the Brier score of a further training: each training has a temperature of its own."""
    rng = np.random.default_rng([seed, n, count])
    labels, (p, _) = world(np.random.default_rng(98), 200_000, temperature=1.0)
    grid = np.exp(np.linspace(-1.6, 0.9, 26))
    brier = [metrics.brier_score(labels, softmax(np.log(p) / t)) for t in grid]

    def population(log_temperature):
        return np.interp(log_temperature, np.log(grid), brier)

    value, hits = population(rng.normal(-0.35, 0.25, 100_000)).mean(), []
    for k in range(repetitions):
        labels, (p, _) = world(rng, n, temperature=1.0)
        models = [softmax(np.log(p) / t) for t in np.exp(rng.normal(-0.35, 0.25, count))]
        points = np.array([metrics.brier_score(labels, q) for q in models])
        mean = drawn(labels, models, ["brier"], seed, n, k)["brier"].mean(axis=1)
        found = bootstrap._interval("brier", points.mean(), bootstrap._with_trainings(points, mean, rng), n)
        hits.append(found.low <= value <= found.high)
    return [rate("95 % interval, Brier", f"{count} trainings", n, hits)]


def gate(n, repetitions, seed=5):
    """Rate at which `medq advise` passes a candidate whose true cost is exactly the limit."""
    rng, true = np.random.default_rng([seed, n]), truth()
    hits = {metric: [] for metric in advise.COSTS}
    for k in range(repetitions):
        labels, models = world(rng, n)
        for metric, draws in drawn(labels, models, list(hits), seed, n, k).items():
            first, second = (metrics.METRICS[metric](labels, p) for p in models)
            found = bootstrap.difference(metric, first - second, draws[:, 0] - draws[:, 1])
            scale = advise.COSTS[metric][2]
            limit = scale * (true[metric][0] - true[metric][1])
            _, bound = advise.bounded(found.delta / 100, found.low / 100, found.high / 100, scale, confidence=0.95)
            hits[metric].append(bound <= limit)
    what = "true cost at the limit: passes"
    return [rate(f"gate of medq advise, {NAMES[metric]}", what, n, hit, 0.05) for metric, hit in hits.items()]


def calibration(n, repetitions, seed=6):
    """Mean of the binned ECE, its floor and the debiased estimate of a calibrated model (all 0 in truth)."""
    rng, found = np.random.default_rng([seed, n]), []
    for _ in range(repetitions):
        logits = 2 * rng.normal(size=(n, 4))
        probs = softmax(logits)
        labels = (rng.random(n)[:, None] > probs.cumsum(axis=1)[:, :-1]).sum(axis=1)
        floor = metrics.calibration_floor(probs, n_draws=200)
        ece = metrics.expected_calibration_error(labels, probs)
        low, high = np.quantile(floor, [0.025, 0.975])
        found.append((ece, low <= ece <= high, metrics.METRICS["ce2"](labels, probs)))
    ece, within, ce2 = np.transpose(found)
    what = "calibrated model"
    return [
        rate("mean binned ECE", what, n, ece, 0.0),
        rate("mean squared calibration error, debiased", what, n, ce2, 0.0),
        rate("binned ECE within the band of its floor", what, n, within),
    ]


def rare(n, repetitions, strength, seed=11):
    """Coverage of ranked metrics where the rarest class has 15, 30 or 60 images, of models like these and near-perfect ones."""
    rows = []
    for count in (15, 30, 60):
        prior = (count / n, 0.2, 0.3, 0.5 - count / n)
        rng, true = np.random.default_rng([seed, count]), truth(prior, strength=strength)
        of_rarest = truth(prior, strength=strength, column=0)
        kinds = [(metric, kind) for metric in bootstrap.RANKED for kind in ("mean", "class", "paired difference")]
        hits = {kind: [] for kind in kinds}
        for k in range(repetitions):
            labels, models = world(rng, n, prior, strength=strength)
            options = {"n_resamples": RESAMPLES, "seed": [seed, n, k], "threads": 1}
            of_classes = bootstrap.replicates(labels, models, bootstrap.RANKED, **options)
            size = (labels == 0).sum()
            for metric in bootstrap.RANKED:
                draws = bootstrap._macro(metric, of_classes[metric])
                hit = covers(metric, labels, models[0], draws[:, 0], true[metric][0], size)
                hits[metric, "mean"].append(hit)
                hits[metric, "paired difference"].append(pair_covers(draws, true[metric]))
                value = metrics.per_class(labels, models[0], metric)[0]
                if value < 1:  # the end of the scale has no interval
                    found = bootstrap._interval(metric, value, of_classes[metric][:, 0, 0], size)
                    hits[metric, "class"].append(found.low <= of_rarest[metric][0] <= found.high)
        for metric, kind in kinds:
            value = (of_rarest if kind == "class" else true)[metric]
            if kind == "paired difference":
                holds = bootstrap.difference_holds(metric, value, count, n)
            else:
                holds = bootstrap.level_holds(metric, value[0], count, n, kind)
            values = " and ".join(f"{v:.3f}" for v in value[: 2 if kind == "paired difference" else 1])
            article = "a" if metric == "auroc" else "an"
            what = {"mean": "one model", "class": "one class"}.get(kind, kind)
            condition = f"{what} with {article} {NAMES[metric]} of {values}; rarest class {count} images"
            row = rate(f"95 % interval, {NAMES[metric]}", condition, n, hits[metric, kind], 0.95 if holds else np.nan)
            rows.append(row)
    return rows


def combined(n, repetitions, seed=7):
    """Coverage of what claims combine from stored intervals, on the same images.

    Two backbones, each in FP32 and under two engines of PTQ: losses of ROC-AUC, of AUPRC of each class, and of Brier.
    """
    noise, measured, rng = (0.0, 0.7, 0.8, 0.4, 0.9, 1.0), ("auroc", "auprc", "brier"), np.random.default_rng([seed, n])

    def found(labels, models):
        own = {m: np.array([metrics.TABLE[m].columns(labels, p) for p in models]) for m in measured}
        return {m: metrics.combine(m, v) for m, v in own.items() if m != "auprc"} | {"auprc": own["auprc"].T}

    def claimed(estimate):
        """Intervals of `estimate(metric, model a, model b, class)`, minus that of b if there is one, as claims join them."""
        losses = [[estimate("auroc", b, b + e) for e in (1, 2)] for b in (0, 3)]
        means = [evidence.mean(engines, same_images=True) for engines in losses]
        brier = [estimate("brier", *pair) for pair in ((2, 0), (1, 0), (1, 2))]
        single = [[estimate("auprc", m, None, c) for m in (0, 1)] for c in range(4)]
        classes = [evidence.minus(*pair, "") for pair in single]
        return {
            "half of one loss within another": evidence.contrast(*brier, 0.5, ""),
            "mean loss under two engines": means[0],
            "loss beyond another backbone's": evidence.minus(*means, ""),
            "loss of a class": classes[0],
            "losses of classes beyond others'": evidence.minus(*map(evidence.mean, (classes[:2], classes[2:])), ""),
        }

    def estimate(values, draws=None):
        def of(metric, a, b=None, c=...):
            value, *replicates = (v[c] for v in (values[metric], *([draws[metric]] if draws else [])))
            value, *replicates = (v[..., a] - (0 if b is None else v[..., b]) for v in (value, *replicates))
            if draws and b is None:  # a class's own value
                own = bootstrap._interval(metric, value, replicates[0], n // 4)
                return evidence.Entry("", value, own.low, own.high)
            return evidence.Entry("", value, *(np.quantile(replicates, [0.025, 0.975]) if draws else ()))

        return claimed(of)

    true = {k: e.value for k, e in estimate(found(*world(np.random.default_rng(99), 400_000, noise=noise))).items()}
    hits = {what: [] for what in true}
    for k in range(repetitions):
        labels, models = world(rng, n, noise=noise)
        options = {"n_resamples": RESAMPLES, "seed": [seed, n, k], "threads": 1}
        of_classes = bootstrap.replicates(labels, models, measured, **options)
        draws = {m: bootstrap._macro(m, of_classes[m]) for m in ("auroc", "brier")}
        draws["auprc"] = np.moveaxis(of_classes["auprc"], 2, 0)
        for what, e in estimate(found(labels, models), draws).items():
            hits[what].append(e.low <= true[what] <= e.high)
    kinds = {what: "95 % interval" if "half" in what else AT_LEAST for what in hits}
    return [rate(f"{kinds[what]}, {what}", "same images", n, hit) for what, hit in hits.items()]


def over_backbones(n, repetitions, seed=8):
    """Coverage over `n` backbones: Student's mean, the rank correlation, and intervals of a ratio of standard deviations."""
    rng, rows = np.random.default_rng([seed, n]), []

    def pair(rho):
        a, b = rng.normal(size=(2, n))
        return a, rho * a + np.sqrt(1 - rho**2) * b

    for skewness, draw in ((0, rng.normal), (1, lambda size: rng.gamma(4, size=size) - 4)):
        means = [evidence.student(None, "", draw(size=n)) for _ in range(repetitions)]
        hits = [e.low <= 0 <= e.high for e in means]
        rows.append(rate("95 % interval, mean over backbones", f"skewness {skewness}", n, hits))
    for rho in (0.0, 0.5, 0.9):
        true = 6 / np.pi * np.arcsin(rho / 2)
        pairs = [evidence.rank_correlation(*map(pd.Series, pair(rho)), "") for _ in range(repetitions)]
        hits = [e.low <= true <= e.high for e in pairs]
        rows.append(rate("95 % interval, rank correlation", f"correlation {rho:g}", n, hits))
    for condition, rho, collapse in (
        ("independent, normal", 0.0, 0),
        ("correlation 0.9, normal", 0.9, 0),
        ("correlation 0.9, one in eight collapses", 0.9, 5),
    ):
        hits, true = [], np.sqrt(1 + collapse**2 * 7 / 64)
        for _ in range(repetitions):
            a, b = pair(rho)
            ends = spreads(a, b - collapse * (rng.random(n) < 1 / 8))
            hits.append([low <= true <= high for low, high in ends.values()])
        for name, hit in zip(ends, np.transpose(hits)):
            what = f"95 % interval, ratio of standard deviations ({name}; not used)"
            rows.append(rate(what, condition, n, hit, np.nan))
    return rows


def spreads(x, y):
    """{method: (low, high)} of the standard deviation of `y` over that of `x`, paired samples of equal size."""
    n, ratio, shape = len(x), y.std(ddof=1) / x.std(ddof=1), stats.f.ppf([0.975, 0.025], len(x) - 1, len(x) - 1) ** -0.5
    k = 1 + 2 * (1 - np.corrcoef(x, y)[0, 1] ** 2) * stats.t.ppf(0.975, n - 2) ** 2 / (n - 2)
    without = [np.log(np.delete(y, i).std(ddof=1) / np.delete(x, i).std(ddof=1)) for i in range(n)]
    values = n * np.log(ratio) - (n - 1) * np.array(without)
    half = stats.t.ppf(0.975, n - 1) * stats.sem(values)
    cut = int(n / (2 * np.sqrt(n - 4)))
    kurtosis = [n * np.sum((v - stats.trim_mean(v, cut / n)) ** 4) / (n - 1) ** 2 / v.var(ddof=1) ** 2 for v in (x, y)]
    error = np.sqrt(2 * (np.mean(kurtosis) - (n - 3) / n) / (n - 1))
    return {
        "F": tuple(ratio * shape),
        "Pitman and Morgan": tuple(ratio * np.sqrt(k + np.sqrt(k**2 - 1) * np.array([-1, 1]))),
        "Miller's jackknife": tuple(np.exp(values.mean() + half * np.array([-1, 1]))),
        "Bonett": tuple(ratio * np.exp(0.98 * error * np.array([-1, 1]))),
    }


def of_draws(n, repetitions, seed=9):
    """Coverage over `n` draws of calibration images: Welch's gain between two sizes, and widths of bands of six curves."""
    rng, hits = np.random.default_rng([seed, n]), ([], [], [])
    for _ in range(repetitions):
        a, b = rng.normal(size=n), 3 * rng.normal(size=n)
        half, _ = evidence.welch_half(*((v.var(ddof=1) / n, n) for v in (a, b)))
        hits[0].append(abs(a.mean() - b.mean()) <= half)
        own = np.exp(0.5 * rng.normal(size=(3, 6, 1)))
        for i, scale in ((1, own), (2, own[:1])):
            first, *rest = (scale * rng.normal(size=(n, 3, 6, 7)).std(axis=0, ddof=1)).mean(axis=-1)
            e = evidence.welch("", first, np.ravel(rest))
            hits[i].append(e.low <= 1 <= e.high)
    names = (
        ("95 % interval, AUPRC gained with more calibration images", "few draws"),
        ("95 % interval, ratio of widths of bands", "few draws, other backbones"),
        (f"{AT_LEAST}, ratio of widths of bands", "few draws, same backbones"),
    )
    return [rate(*name, n, hit) for name, hit in zip(names, hits)]


def proportions(n, repetitions, seed=10):
    """Coverage of Newcombe's interval of the loss of sensitivity in a class of `n` images, the same ones before and after."""
    rng, rows = np.random.default_rng([seed, n]), []
    for before, after in ((0.95, 0.85), (0.9, 0.5)):
        for rho in (0.0, 0.8):
            z = rng.normal(size=(2, repetitions, n))
            z[1] = rho * z[0] + np.sqrt(1 - rho**2) * z[1]
            counts = (z < stats.norm.ppf([before, after])[:, None, None]).sum(axis=-1)
            found = [evidence.newcombe(*pair, n) for pair in counts.T]
            hits = [low <= before - after <= high for _, low, high in found]
            condition = f"{before:g} against {after:g}, correlation {rho:g}"
            rows.append(rate(f"{AT_LEAST}, loss of sensitivity", condition, n, hits))
    return rows


def times(rng, rho, scale, drift, n=25):
    """Batch times [20 turns × n] whose logarithm has lag-one correlation `rho` within a turn, around a drifting level."""
    noise = rng.normal(size=(timing.BLOCKS, n))
    for i in range(1, n):
        noise[:, i] = rho * noise[:, i - 1] + np.sqrt(1 - rho**2) * noise[:, i]
    own = 0.03 * rng.normal(size=timing.BLOCKS)
    return (scale * np.exp(drift + own)[:, None] * np.exp(0.1 * noise)).ravel()


def timings(n, repetitions, seed=12):
    """Coverage of the ratio of median batch times on a machine that drifts, of `n` batches that depend on each other."""
    rng, rows = np.random.default_rng([seed, n]), []
    for rho in (0.0, 0.56, 0.92):
        hits = []
        for _ in range(repetitions):
            level = 0.05 * rng.normal(size=timing.BLOCKS).cumsum()
            slow, fast = (times(rng, rho, scale, level, n // timing.BLOCKS) for scale in (2.0, 1.0))
            _, low, high = timing.ratio(slow, fast)
            hits.append(low <= 2 <= high)
        rows.append(rate("95 % interval, speed-up", f"correlation {rho:g} of batches", n, hits))
    return rows


def maps(n, repetitions, seed=12):
    """Coverage over `n` images of what `medq.attention` summarises: means of skewed measures, and a rank correlation."""

    def draw(rng, n):
        z = rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], n)
        moved, change = expit(z[:, 0] - 2), expit(2 * z[:, 1] - 2) * rng.choice([-1, 1], n)
        frame = {"rank_correlation": 1 - moved, "overlap": (1 - moved) ** 2, "peak_shift": 32 * rng.poisson(0.3, n)}
        return pd.DataFrame(frame | {"change": change})

    rng = np.random.default_rng([seed, n])
    true = draw(np.random.default_rng(99), 400_000).assign(absolute_change=lambda f: f["change"].abs()).mean()
    true["relation"] = 6 / np.pi * np.arcsin(0.25)
    hits = []
    for k in range(repetitions):
        found = attention.summarised(draw(rng, n), np.arange(n), k, RESAMPLES).set_index("measure")
        hits.append((found["low"] <= true) & (true <= found["high"]))
    found = pd.DataFrame(hits).items()
    return [rate(f"95 % interval, {m.replace('_', ' ')} of maps", "same images", n, hit) for m, hit in found]


RUNS = (
    *((f"intervals-{n}", lambda r, n=n: intervals(n, r)) for n in SIZES),
    ("intervals-rare", lambda r: intervals(1300, r, RARE)),
    *(
        (f"intervals-{s}-{n}", lambda r, n=n, s=s: intervals(n, r, strength=s))
        for s in (3.0, 3.5, 4.0, 5.0)
        for n in (300, 1300)
    ),
    *((f"p-{n}", lambda r, n=n: p_values(n, r)) for n in SIZES),
    *((f"duplicates-{n}", lambda r, n=n: duplicates(n, r)) for n in (300, 1300)),
    *((f"trainings-{c}", lambda r, c=c: trainings(300, r, c)) for c in (3, 5)),
    *((f"gate-{n}", lambda r, n=n: gate(n, r)) for n in SIZES),
    *((f"calibration-{n}", lambda r, n=n: calibration(n, r)) for n in SIZES),
    ("rare-groups", lambda r: rare(1000, r, 1.7)),
    ("rare-saturated", lambda r: rare(1000, r, 3.0)),
    ("rare-near", lambda r: rare(1000, r, 3.5)),
    ("rare-perfect", lambda r: rare(1000, r, 4.0)),
    ("timings", lambda r: timings(500, r)),
    ("combined", lambda r: combined(300, r)),
    ("backbones", lambda r: over_backbones(8, r)),
    ("draws", lambda r: of_draws(3, r)),
    *((f"proportions-{n}", lambda r, n=n: proportions(n, r)) for n in (30, 100)),
    ("maps", lambda r: maps(300, r)),
)


def main(repetitions=1000, *names):
    kept = pd.read_csv(FILE) if names else pd.DataFrame(columns=[*COLUMNS, "run"])
    for name, run in RUNS:
        if names and name not in names:
            continue
        rows = pd.DataFrame(run(int(repetitions)), columns=COLUMNS).round(6)
        kept = pd.concat([kept[kept["run"] != name], rows.assign(run=name)])
        kept.astype({"repetitions": int}).to_csv(FILE, index=False)
        print(name, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
