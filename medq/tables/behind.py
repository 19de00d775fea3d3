"""The tidy numbers behind every table and figure, one row per number, for figures and for download."""

import math

import pandas as pd

from medq.errors import one_of
from medq.results import CELL, counterpart, means, scores, timings
from medq.results import published as paper_results
from medq.tables.beyond import beside_variant, engine_check, flips, leak_effect, qat_control, remedies, silent
from medq.tables.entries import by_key, cell_state, mean_state
from medq.tables.paper import speedups, table1_data, table2_data, table3_data, table4_data


def regimes_data(results, metric, published=None, *, form="converted"):
    """Figures 1 and 5: dataset, backbone (or `mean`), regime, value, low, high, between_std, paper, state."""
    cells = scores(results, metric, form=form)
    mean = means(results, metric, form=form)
    paper = by_key(means(published or paper_results(), metric, form="fake-quant"), ["dataset", "regime"])
    mean = mean.assign(
        backbone="mean",
        paper=[
            paper.get((counterpart(d), r), {}).get("value", math.nan) for d, r in zip(mean["dataset"], mean["regime"])
        ],
        state=[
            mean_state(results, d, r, b, form) for d, r, b in zip(mean["dataset"], mean["regime"], mean["backbones"])
        ],
    )
    cells = cells.assign(state=[cell_state(results, *key, form) for key in zip(*(cells[c] for c in CELL))])
    columns = [*CELL, "value", "low", "high", "between_std", "paper", "state"]
    return pd.concat([cells.reindex(columns=columns), mean.reindex(columns=columns)], ignore_index=True)


def tradeoff_data(results, *, engine="fbgemm", batch_size=1, metric="auprc"):
    """Figure 2: dataset, backbone, regime (fp32 or qat), value, low, high, p50_ms, p50_low, p50_high."""
    cells = scores(results, metric)
    cells = cells[cells["regime"].isin(["fp32", f"qat-{engine}"])]
    timed = timings(results, batch_size)[["backbone", "regime", "p50_ms", "p50_low", "p50_high"]]
    if f"qat-{engine}" not in set(timed["regime"]):  # the same integer kernels run, whatever the weights
        ptq = timed[timed["regime"] == f"ptq-{engine}"].assign(regime=f"qat-{engine}")
        timed = pd.concat([timed, ptq], ignore_index=True)
    return cells.merge(timed, on=["backbone", "regime"], how="left").drop(columns="n_folds")


PAIRS = (("fp32", "ptq"), ("fp32", "qat"), ("ptq", "qat"))  # top to bottom in Figure 3


def forest_data(results, *, metric="auprc", engine="fbgemm"):
    """Figure 3: rows of `bootstrap.csv` for the paper's three pairs, with `pair` as the figure labels it."""
    b = results.bootstrap
    parts = []
    for first, second in PAIRS:
        names = [f"{k}-{engine}" if k != "fp32" else k for k in (first, second)]
        rows = b[(b["method_a"] == names[0]) & (b["method_b"] == names[1]) & (b["metric"] == metric)]
        parts.append(
            rows.assign(pair=" vs ".join("FP32" if k == "fp32" else f"INT8-{k.upper()}" for k in (first, second)))
        )
    return pd.concat(parts, ignore_index=True)


def calibration_data(results, *, regime="ptq-fbgemm"):
    """Figure 4: dataset, backbone, n_calibration, mean, std, n, spread (`folds`, or `subsets` of one)."""
    c = results.calibration_size
    c = c[c["regime"] == regime]
    keys = ["dataset", "backbone", "n_calibration"]
    several = c.groupby("dataset")["fold"].nunique().gt(1)
    per_fold = c.groupby([*keys, "fold"], sort=False)["auprc"].mean().reset_index()
    parts = [
        (per_fold if several.get(d, False) else c)[lambda f, d=d: f["dataset"] == d].assign(
            spread="folds" if several.get(d, False) else "subsets"
        )
        for d in c["dataset"].unique()
    ]
    if not parts:
        return pd.DataFrame(columns=[*keys, "mean", "std", "n", "spread"])
    grouped = pd.concat(parts).groupby([*keys, "spread"], sort=False)["auprc"]
    return grouped.agg(mean="mean", std="std", n="size").reset_index()[[*keys, "mean", "std", "n", "spread"]]


def latency_data(results, published=None, *, engine="fbgemm", batch_size=1):
    """Figure 6: backbone, regime (fp32 or ptq), p50_ms, p50_low, p50_high, p99_ms, paper_p50_ms."""
    columns = ["backbone", "regime", "p50_ms", "p50_low", "p50_high", "p99_ms"]
    ours, paper = (timings(r, batch_size)[columns] for r in (results, published or paper_results()))
    ours = ours[ours["regime"].isin(["fp32", f"ptq-{engine}"]) & ours["p50_ms"].notna()]
    paper = paper[["backbone", "regime", "p50_ms"]].rename(columns={"p50_ms": "paper_p50_ms"})
    return ours.merge(paper, on=["backbone", "regime"], how="left")


def reliability_data(results, *, backbone="resnet50", engine="fbgemm", kind="top-label"):
    """Figure 7: dataset, regime, bin, lower, upper, confidence, frequency, count, of the deployed models."""
    from medq.metrics import reliability_curve

    parts = []
    for dataset in results.datasets:
        for regime in ("fp32", f"ptq-{engine}", f"qat-{engine}"):
            p = results.predictions(dataset, backbone, regime)
            if len(p):
                curve = reliability_curve(p["label"].to_numpy(), p.filter(regex="^p_").to_numpy(), kind=kind)
                parts.append(pd.DataFrame(curve._asdict()).assign(dataset=dataset, regime=regime))
    columns = ["dataset", "regime", "bin", "lower", "upper", "confidence", "frequency", "count"]
    frame = pd.concat(parts) if parts else pd.DataFrame(columns=columns)
    return frame.rename_axis("bin").reset_index()[columns] if parts else frame


DATA = {
    "table1": table1_data,
    "table2": table2_data,
    "table3": table3_data,
    "table4": table4_data,
    "figure1": lambda r, p: regimes_data(r, "auroc", p),
    "figure2": lambda r, p: tradeoff_data(r),
    "figure3": lambda r, p: forest_data(r),
    "figure4": lambda r, p: calibration_data(r),
    "figure5": lambda r, p: regimes_data(r, "auprc", p),
    "figure6": latency_data,
    "figure7": lambda r, p: reliability_data(r),
    "engine_check": lambda r, p: engine_check(r),
    "ablation": lambda r, p: r.ablation,
    "remedies": lambda r, p: remedies(r),
    "attention": lambda r, p: r.attention,
    "layers": lambda r, p: r.layers,
    "silent": lambda r, p: silent(r),
    "flips": lambda r, p: flips(r),
    "leak": lambda r, p: r.leak,
    "leak_effect": lambda r, p: leak_effect(r),
    "deduplicated": lambda r, p: beside_variant(r, "deduplicated"),
    "inner": lambda r, p: beside_variant(r, "inner"),
    "qat_control": lambda r, p: qat_control(r),
    "peers": lambda r, p: r.peers,
    "speedups": lambda r, p: speedups(r),
    "coverage": lambda r, p: r.status,
}


def data(name, results, published=None):
    """The tidy numbers behind a table or figure (names in `DATA`); `UserError` for an unknown name."""
    return DATA[one_of("table or figure", name, DATA)](results, published)
