"""Speed of the paired bootstrap against plain loops, both measured in one run, and its peak memory.

    python benchmarks/bootstrap.py [--images 10015] [--resamples 10000] [--loop-resamples 30] [--threads N]

The data have the size and imbalance of HAM10000: 7 classes, two methods. medq runs all resamples. The loops,
over scikit-learn's functions for AUPRC and AUROC and over NumPy for Brier, run the first few of the
same resamples; their time is scaled to all of them, and the replicates of these few are compared. Peak memory
is that of the whole process after medq's part, before scikit-learn is imported. Other work on the machine
moves both times: read the ratio.
"""

import argparse
import os
import resource
import sys
import time

import numpy as np

SHARES = [0.033, 0.051, 0.110, 0.011, 0.111, 0.670, 0.014]  # akiec, bcc, bkl, df, mel, nv, vasc
METRICS = ("auprc", "auroc", "brier")


def two_models(n, seed=0):
    """Labels [n] and two methods' float32 probabilities [n, 7]."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(SHARES), size=n, p=SHARES)
    logits = rng.normal(size=(n, len(SHARES))) + 2 * np.eye(len(SHARES))[labels]
    powers = [np.exp(z) for z in (logits, logits + 0.5 * rng.normal(size=logits.shape))]
    return labels, *((p / p.sum(axis=1, keepdims=True)).astype(np.float32) for p in powers)


def peak_mb():
    """Peak resident memory of this process in MB; Linux counts it in KiB, macOS in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def loops():
    """Plain implementations: metric -> function(labels, probs)."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    def one_vs_rest(function):
        return lambda labels, probs: np.mean([function(labels == c, p) for c, p in enumerate(probs.T)])

    def brier(labels, probs):
        return np.mean(np.sum((probs - np.eye(probs.shape[1])[labels]) ** 2, axis=1))

    return {"auprc": one_vs_rest(average_precision_score), "auroc": one_vs_rest(roc_auc_score), "brier": brier}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_015)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--loop-resamples", type=int, default=30)
    parser.add_argument("--threads", type=int, default=None, help="all processors without it")
    return parser.parse_args()


def main():
    args = arguments()
    start = time.perf_counter()
    from medq import bootstrap

    imported = time.perf_counter() - start
    labels, a, b = two_models(args.images)
    start = time.perf_counter()
    bootstrap.paired_auprc(labels, a, b, n_resamples=1)
    print(
        f"{os.cpu_count()} processors, import {imported:.2f} s, first call (kernels compiled or loaded "
        f"from the cache) {time.perf_counter() - start:.2f} s"
    )
    before, fast = peak_mb(), {}
    for metric in METRICS:
        start = time.perf_counter()
        result = bootstrap.paired(labels, a, b, metric, n_resamples=args.resamples, threads=args.threads)
        fast[metric] = (time.perf_counter() - start, result.replicates)
    print(f"peak memory {peak_mb():.0f} MB, of which {before:.0f} MB before the first long run\n")

    print(f"{args.images} images, {args.resamples} resamples; loop measured on {args.loop_resamples}, scaled")
    print(f"{'metric':8}{'medq s':>10}{'loop s':>10}{'ratio':>8}{'ms/resample':>14}{'greatest gap':>18}")
    for metric, loop in loops().items():
        drawn = [
            np.repeat(np.arange(args.images), counts)
            for counts in bootstrap.resample_counts(args.images, args.loop_resamples)
        ]
        probs = [p.astype(np.float64) for p in (a, b)]
        start = time.perf_counter()
        expected = [100 * (loop(labels[i], probs[0][i]) - loop(labels[i], probs[1][i])) for i in drawn]
        seconds = (time.perf_counter() - start) / args.loop_resamples * args.resamples
        taken, values = fast[metric]
        gap = np.abs(values[: args.loop_resamples] - expected).max()
        print(
            f"{metric:8}{taken:10.2f}{seconds:10.1f}{seconds / taken:8.0f}"
            f"{1e3 * taken / args.resamples:14.4f}{gap:15.1e} pp"
        )


if __name__ == "__main__":
    main()
