"""The numbers that figures draw, one row per point, for drawing and for download."""

import pandas as pd

from medq.metrics import METRICS, consistency_band, reliability_curve
from medq.results import CELL, means, published, scores, timings
from medq.tables.entries import cell_state, mean_state


def regimes_data(results, metric):
    """Figures 1 and 5: dataset, backbone (or `mean`), regime, value, low, high, between_std, state."""
    cells, mean = scores(results, metric), means(results, metric)
    keys = zip(mean["dataset"], mean["regime"], mean["backbones"])
    mean = mean.assign(backbone="mean", state=[mean_state(results, *key, "converted") for key in keys])
    cells = cells.assign(state=[cell_state(results, *key) for key in zip(*(cells[c] for c in CELL))])
    columns = [*CELL, "value", "low", "high", "between_std", "state"]
    return pd.concat([cells.reindex(columns=columns), mean.reindex(columns=columns)], ignore_index=True)


def tradeoff_data(results):
    """Figure 2: dataset, backbone, regime (fp32 or qat-fbgemm), value (AUPRC), low, high, p50_ms, p50_low, p50_high."""
    cells = scores(results, "auprc")
    cells = cells[cells["regime"].isin(["fp32", "qat-fbgemm"])]
    timed = timings(results, 1)[["backbone", "regime", "p50_ms", "p50_low", "p50_high"]]
    if "qat-fbgemm" not in set(timed["regime"]):  # the same integer kernels run, whatever the weights
        ptq = timed[timed["regime"] == "ptq-fbgemm"].assign(regime="qat-fbgemm")
        timed = pd.concat([timed, ptq], ignore_index=True)
    return cells.merge(timed, on=["backbone", "regime"], how="left")


PAIRS = (("fp32", "ptq"), ("fp32", "qat"), ("ptq", "qat"))  # top to bottom in Figure 3


def pair_title(pair):
    """`FP32 vs INT8-PTQ` of one of `PAIRS`."""
    return " vs ".join("FP32" if kind == "fp32" else f"INT8-{kind.upper()}" for kind in pair)


def forest_data(results):
    """Figure 3: rows of `bootstrap.csv` for the paper's three pairs, with `pair` as the figure labels it."""
    b = results.bootstrap[results.bootstrap["metric"] == "auprc"]
    parts = []
    for pair in PAIRS:
        first, second = (kind if kind == "fp32" else f"{kind}-fbgemm" for kind in pair)
        rows = b[(b["method_a"] == first) & (b["method_b"] == second)]
        parts.append(rows.assign(pair=pair_title(pair)))
    return pd.concat(parts, ignore_index=True)


def calibration_data(results):
    """Figure 4: dataset, backbone, n_calibration, mean, std, n, spread (`folds`, or `subsets` of one)."""
    c = results.calibration_size
    c = c[c["regime"] == "ptq-fbgemm"]
    several = c.groupby("dataset")["fold"].transform("nunique").gt(1)
    keys = ["dataset", "backbone", "n_calibration"]
    folds = c[several].groupby([*keys, "fold"], sort=False)["auprc"].mean().reset_index().assign(spread="folds")
    points = pd.concat([folds, c[~several].assign(spread="subsets")])
    grouped = points.groupby([*keys, "spread"], sort=False)["auprc"]
    return grouped.agg(mean="mean", std="std", n="size").reset_index()[[*keys, "mean", "std", "n", "spread"]]


def latency_data(results):
    """Figure 6: backbone, regime (fp32 or ptq-fbgemm), p50_ms, p50_low, p50_high, p99_ms, paper_p50_ms."""
    columns = ["backbone", "regime", "p50_ms", "p50_low", "p50_high", "p99_ms"]
    ours, paper = (timings(r, 1)[columns] for r in (results, published()))
    ours = ours[ours["regime"].isin(["fp32", "ptq-fbgemm"]) & ours["p50_ms"].notna()]
    paper = paper[["backbone", "regime", "p50_ms"]].rename(columns={"p50_ms": "paper_p50_ms"})
    return ours.merge(paper, on=["backbone", "regime"], how="left")


BINS = ["regime", "ece", "bin", "lower", "upper", "confidence", "frequency", "band_low", "band_high", "count"]


def reliability_bins(predictions, regime):
    """Bins of a reliability diagram (top label) of stored predictions: columns `BINS`.

    `ece` is the binned error over all of them; a calibrated model's frequencies lie in the band in 95 % of samples.
    """
    if predictions.empty:
        return pd.DataFrame(columns=BINS)
    truth, probability = predictions["label"].to_numpy(), predictions.filter(regex="^p_").to_numpy()
    curve = pd.DataFrame(reliability_curve(truth, probability, kind="top-label")._asdict())
    low, high = consistency_band(probability, kind="top-label")
    curve = curve.assign(regime=regime, ece=METRICS["ece_top_label"](truth, probability), band_low=low, band_high=high)
    return curve.rename_axis("bin").reset_index()[BINS]


def reliability_data(results, *, backbone="resnet50"):
    """Figure 7: dataset and the columns `BINS` of the deployed models under FP32, PTQ and QAT."""
    parts = [
        reliability_bins(results.predictions(dataset, backbone, regime), regime).assign(dataset=dataset)
        for dataset in results.datasets
        for regime in ("fp32", "ptq-fbgemm", "qat-fbgemm")
    ]
    frame = pd.concat([p for p in parts if len(p)] or [pd.DataFrame(columns=["dataset", *BINS])], ignore_index=True)
    return frame[["dataset", *BINS]]
