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

from medq import advise, bootstrap, metrics

FILE = Path(__file__).parents[1] / "book" / "_data" / "coverage.csv"
COLUMNS = ["quantity", "condition", "n", "nominal", "found", "repetitions"]
SIZES = (300, 1300, 2000)
RESAMPLES = 1000
EVEN = (0.25, 0.25, 0.25, 0.25)
RARE = (0.05, 0.15, 0.3, 0.5)
NAMES = {"auroc": "ROC-AUC", "auprc": "AUPRC", "brier": "Brier", "nll": "NLL", "accuracy": "accuracy"}


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def world(rng, n, prior=EVEN, temperature=0.7, noise=(0.0, 0.7)):
    """Labels and one model's probabilities for each level of noise, on the same images."""
    labels = rng.choice(len(prior), size=n, p=prior)
    signal = 1.2 * rng.normal(size=(n, len(prior))) + 1.7 * np.eye(len(prior))[labels]
    logits = [np.log(prior) + 1.2 * (signal + level * rng.normal(size=signal.shape)) for level in noise]
    return labels, [softmax(z / temperature) for z in logits]


@cache
def truth(prior=EVEN, noise=(0.0, 0.7)):
    """{metric: value of each model} in the population."""
    labels, models = world(np.random.default_rng(99), 400_000, prior, noise=noise)
    return {k: np.array([metrics.METRICS[k](labels, p) for p in models]) for k in bootstrap.TESTED}


def intervals(n, repetitions, prior=EVEN, seed=1):
    """Coverage of the 95 % intervals of one model and of a paired difference, for every tested metric."""
    rng, true = np.random.default_rng([seed, n]), truth(prior)
    hits = {(metric, kind): 0 for metric in bootstrap.TESTED for kind in ("one model", "paired difference")}
    for k in range(repetitions):
        labels, models = world(rng, n, prior)
        drawn = bootstrap.replicates(
            labels, models, bootstrap.TESTED, n_resamples=RESAMPLES, seed=[seed, n, k], threads=1
        )
        for metric in bootstrap.TESTED:
            draws = bootstrap._macro(metric, drawn[metric])
            for kind, replicates, value in (
                ("one model", draws[:, 0], true[metric][0]),
                ("paired difference", draws[:, 0] - draws[:, 1], true[metric][0] - true[metric][1]),
            ):
                low, high = np.nanquantile(replicates, [0.025, 0.975])
                hits[metric, kind] += low <= value <= high
    condition = "four classes, even" if prior == EVEN else "four classes, rarest 5 %"
    return [
        (f"95 % interval, {NAMES[metric]}", f"{kind}; {condition}", n, 0.95, hit / repetitions, repetitions)
        for (metric, kind), hit in hits.items()
    ]


def p_values(n, repetitions, seed=2):
    """Rate of p < 0.05 between two methods of equal quality."""
    rng, hits = np.random.default_rng([seed, n]), {"auprc": 0, "brier": 0}
    for k in range(repetitions):
        labels, (a, b) = world(rng, n, noise=(0.7, 0.7))
        drawn = bootstrap.replicates(labels, [a, b], list(hits), n_resamples=RESAMPLES, seed=[seed, n, k], threads=1)
        for metric in hits:
            draws = bootstrap._macro(metric, drawn[metric])
            hits[metric] += bootstrap.difference(metric, 0.0, draws[:, 0] - draws[:, 1]).p_value < 0.05
    return [
        (f"p < 0.05, {NAMES[metric]}", "paired, methods of equal quality", n, 0.05, hit / repetitions, repetitions)
        for metric, hit in hits.items()
    ]


def duplicates(n, repetitions, seed=3):
    """Coverage for AUPRC where a third of the images have two copies, drawn together and drawn alone."""
    rng, value, hits = np.random.default_rng([seed, n]), truth()["auprc"][0], [0, 0]
    for k in range(repetitions):
        labels, (p, _) = world(rng, n * 3 // 5)
        copies = np.where(np.arange(len(labels)) % 3 == 0, 3, 1)
        y, p, groups = (np.repeat(x, copies, axis=0) for x in (labels, p, np.arange(len(labels))))
        for i, member in enumerate((groups, None)):
            found = bootstrap.interval(y, p, n_resamples=RESAMPLES, groups=member, seed=[seed, n, k], threads=1)
            hits[i] += found.low <= value <= found.high
    return [
        (
            "95 % interval, AUPRC",
            f"a third of the images in threefold; {how}",
            n,
            nominal,
            hit / repetitions,
            repetitions,
        )
        for how, nominal, hit in zip(("copies are groups", "copies count as images"), (0.95, np.nan), hits)
    ]


def trainings(n, repetitions, count, seed=4):
    """Coverage for the Brier score of a further training: each training has a temperature of its own."""
    rng = np.random.default_rng([seed, n, count])
    labels, (p, _) = world(np.random.default_rng(98), 200_000, temperature=1.0)
    grid = np.exp(np.linspace(-1.6, 0.9, 26))
    brier = [metrics.brier_score(labels, softmax(np.log(p) / t)) for t in grid]

    def population(log_temperature):
        return np.interp(log_temperature, np.log(grid), brier)

    value, hits = population(rng.normal(-0.35, 0.25, 100_000)).mean(), 0
    for k in range(repetitions):
        labels, (p, _) = world(rng, n, temperature=1.0)
        models = [softmax(np.log(p) / t) for t in np.exp(rng.normal(-0.35, 0.25, count))]
        drawn = bootstrap.replicates(labels, models, ["brier"], n_resamples=RESAMPLES, seed=[seed, n, k], threads=1)
        points = np.array([metrics.brier_score(labels, q) for q in models])
        draws = bootstrap._macro("brier", drawn["brier"]).mean(axis=1)
        low, high = np.quantile(bootstrap._with_trainings(points, draws, rng), [0.025, 0.975])
        hits += low <= value <= high
    return [("95 % interval, Brier", f"{count} trainings", n, 0.95, hits / repetitions, repetitions)]


def gate(n, repetitions, seed=5):
    """Rate at which `medq advise` passes a candidate whose true cost is exactly the limit."""
    rng, true = np.random.default_rng([seed, n]), truth()
    hits = dict.fromkeys(advise.COSTS, 0)
    for k in range(repetitions):
        labels, models = world(rng, n)
        drawn = bootstrap.replicates(labels, models, list(hits), n_resamples=RESAMPLES, seed=[seed, n, k], threads=1)
        for metric in hits:
            draws = bootstrap._macro(metric, drawn[metric])
            found = bootstrap.difference(
                metric,
                metrics.METRICS[metric](labels, models[0]) - metrics.METRICS[metric](labels, models[1]),
                draws[:, 0] - draws[:, 1],
            )
            scale = advise.COSTS[metric][2]
            limit = scale * (true[metric][0] - true[metric][1])
            _, bound = advise.bounded(found.delta / 100, found.low / 100, found.high / 100, scale, confidence=0.95)
            hits[metric] += bound <= limit
    return [
        (
            f"gate of medq advise, {NAMES[metric]}",
            "true cost at the limit: passes",
            n,
            0.05,
            hit / repetitions,
            repetitions,
        )
        for metric, hit in hits.items()
    ]


def calibration(n, repetitions, seed=6):
    """Mean of the binned ECE, its floor and the debiased estimate of a calibrated model (all 0 in truth)."""
    rng, found = np.random.default_rng([seed, n]), []
    for _ in range(repetitions):
        logits = 2 * rng.normal(size=(n, 4))
        probs = softmax(logits)
        labels = (rng.random(n)[:, None] > probs.cumsum(axis=1)[:, :-1]).sum(axis=1)
        floor = metrics.calibration_floor(probs, n_draws=200)
        ece = metrics.expected_calibration_error(labels, probs)
        found.append((ece, floor.low <= ece <= floor.high, metrics.squared_calibration_error(labels, probs)))
    ece, within, ce2 = np.mean(found, axis=0)
    what = "calibrated model"
    return [
        ("mean binned ECE", what, n, 0.0, ece, repetitions),
        ("mean squared calibration error, debiased", what, n, 0.0, ce2, repetitions),
        ("binned ECE within the band of its floor", what, n, 0.95, within, repetitions),
    ]


RUNS = (
    *((f"intervals-{n}", lambda r, n=n: intervals(n, r)) for n in SIZES),
    ("intervals-rare", lambda r: intervals(1300, r, RARE)),
    *((f"p-{n}", lambda r, n=n: p_values(n, r)) for n in SIZES),
    *((f"duplicates-{n}", lambda r, n=n: duplicates(n, r)) for n in (300, 1300)),
    *((f"trainings-{c}", lambda r, c=c: trainings(300, r, c)) for c in (3, 5)),
    *((f"gate-{n}", lambda r, n=n: gate(n, r)) for n in SIZES),
    *((f"calibration-{n}", lambda r, n=n: calibration(n, r)) for n in SIZES),
)


def main(repetitions=1000, *names):
    kept = pd.read_csv(FILE) if names else pd.DataFrame(columns=COLUMNS)
    for name, run in RUNS:
        if names and name not in names:
            continue
        rows = pd.DataFrame(run(int(repetitions)), columns=COLUMNS).round(6)
        kept = pd.concat([kept, rows]).drop_duplicates(COLUMNS[:3], keep="last")
        kept.to_csv(FILE, index=False)
        print(name, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
