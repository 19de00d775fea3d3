"""Tables 1 to 4 in the paper's own layout, and the numbers behind them."""

import math
from functools import cache

import pandas as pd

from medq import timing
from medq.errors import UserError, one_of
from medq.results import CELL, ENGINES, class_title, counterpart, family, means, scores, timings, title
from medq.results import published as paper_results
from medq.tables.entries import (
    FIELDS,
    PAPER_REGIMES,
    by_key,
    captioned,
    cell_state,
    covers,
    entry,
    mean_state,
    wide_layout,
)

# --- Table 1 --------------------------------------------------------------------------------------


def table1_data(results, published=None, *, form="fake-quant"):
    """ECE and Brier, mean over backbones: dataset, metric, regime, FIELDS, between_std."""
    published = published or paper_results()
    rows = []
    for metric in ("ece", "brier"):
        ours = by_key(means(results, metric, form=form), ["dataset", "regime"])
        paper = by_key(means(published, metric, form="fake-quant"), ["dataset", "regime"])
        for dataset in results.datasets:
            for regime in _regimes(results):
                mine = ours.get((dataset, regime))
                theirs = paper.get((counterpart(dataset), regime), {}).get("value", math.nan)
                printed = mine and not mine["backbones"]  # somebody's mean, of backbones that are not here
                used = mine["backbones"] if mine else ()
                state = "" if printed else mean_state(results, dataset, regime, used, form)
                rows.append(
                    {
                        "dataset": dataset,
                        "metric": metric,
                        "regime": regime,
                        **entry(mine, theirs, state),
                        "between_std": mine["between_std"] if mine else math.nan,
                    }
                )
    order = {d: k for k, d in enumerate(results.datasets)}
    frame = pd.DataFrame(rows, columns=["dataset", "metric", "regime", *FIELDS, "between_std"])
    return frame.sort_values("dataset", key=lambda c: c.map(order), kind="stable").reset_index(drop=True)


def _regimes(results):
    """The paper's six regimes, and the control where it was run."""
    return PAPER_REGIMES + [r for r in results.regimes if r not in PAPER_REGIMES]


def table1(results, published=None, *, form="fake-quant"):
    """Table 1: calibration summary across backbones. `form` `fake-quant` is the paper's, `converted` what
    is deployed.

    Rows (dataset, metric); columns (regime, field). The control `fp32-continued` comes last and is not
    among the six.
    """
    tidy = table1_data(results, published, form=form)
    frame = wide_layout(tidy, ["dataset", "metric"], "regime", _regimes(results))
    what = (
        "fake-quantized models, as in the paper's Table 1"
        if form == "fake-quant"
        else "converted models, as they would be deployed"
    )
    return captioned(
        frame,
        f"Calibration summary across backbones: ECE and Brier ({what}; lower is better)",
        "Mean over backbones; for Brier with the 95 % bootstrap interval of that mean. The binned ECE is biased and has no "
        f"interval. {covers(results)}",
        best="min",
        formats={None: "{:.4f}"},
        best_among=PAPER_REGIMES,
    )


# --- Table 2 --------------------------------------------------------------------------------------

TABLE2 = {
    "throughput": "Throughput (images/s)",
    "p50_ms": "p50 (ms per batch)",
    "convert_seconds": "Convert (s)",
    "against_fbgemm": "Throughput, times FBGEMM's",
}


def table2_data(results, published=None, *, batch_size=32):
    """CPU efficiency of INT8-PTQ by family: dataset, family, engine, quantity, ours, low, high, paper, state.

    `ours` is the median over the family's backbones, `low` and `high` the least and the greatest of them.
    """
    published = published or paper_results()
    rows = []
    for dataset in results.datasets:
        for kind in ("cnn", "transformer"):
            ours = {e: _family_rows(results, dataset, kind, f"ptq-{e}", batch_size) for e in ENGINES}
            paper = {e: _published_family(published, counterpart(dataset), kind, f"ptq-{e}") for e in ENGINES}
            for engine in ENGINES:
                for quantity in TABLE2:
                    values = _efficiency(ours, engine, quantity)
                    row = {} if values.empty else {"value": values.median(), "low": values.min(), "high": values.max()}
                    theirs = _efficiency(paper, engine, quantity)
                    state = "" if len(values) else _untimed(results, dataset, kind, f"ptq-{engine}")
                    rows.append(
                        {
                            "dataset": dataset,
                            "family": kind,
                            "engine": engine,
                            "quantity": quantity,
                            **entry(row, theirs.iloc[0] if len(theirs) else math.nan, state),
                        }
                    )
    return pd.DataFrame(rows, columns=["dataset", "family", "engine", "quantity", *FIELDS])


def _family_rows(results, dataset, kind, regime, batch_size):
    t = results.latency
    t = t[
        t["dataset"].isin([dataset, ""])
        & (t["regime"] == regime)
        & (t["batch_size"] == batch_size)
        & t["device"].isin(["cpu", ""])
    ]
    t = t[t["backbone"].isin([b for b in results.backbones if family(b) == kind])]
    return t.drop_duplicates("backbone", keep="last").set_index("backbone")


def _published_family(published, dataset, kind, regime):
    t = published.latency
    return t[(t["dataset"] == dataset) & (t["backbone"] == kind) & (t["regime"] == regime)].set_index("backbone")


def _efficiency(frames, engine, quantity):
    if quantity == "against_fbgemm":
        return (frames[engine]["throughput"] / frames["fbgemm"]["throughput"]).dropna()
    return frames[engine][quantity].dropna()


def _untimed(results, dataset, kind, regime):
    backbones = [b for b in results.backbones if family(b) == kind]
    states = {cell_state(results, dataset, b, regime) for b in backbones} - {""}
    return " / ".join(sorted(states)) or ("not timed" if backbones else "no such backbone here")


def table2(results, published=None, *, batch_size=32):
    """Table 2: CPU efficiency of INT8-PTQ, the median across backbones within a family.

    Rows (dataset, family, engine); columns (quantity, field). Milliseconds are the machine's: only the
    ratio of qnnpack to fbgemm is compared with the paper's.
    """
    tidy = table2_data(results, published, batch_size=batch_size)
    frame = wide_layout(tidy, ["dataset", "family", "engine"], "quantity", list(TABLE2))
    once = results.latency["dataset"].eq("").any()
    return captioned(
        frame,
        f"CPU efficiency of INT8-PTQ at batch {batch_size} (median within the family)",
        "In parentheses the least and the greatest of the family's backbones.",
        "Timed once per backbone, not per dataset: only the classifier's width differs." if once else "",
        "Seconds and milliseconds belong to the machine; the last column can be compared.",
        formats={"throughput": "{:.1f}", "p50_ms": "{:.0f}", "convert_seconds": "{:.1f}", "against_fbgemm": "{:.2f}"},
        compared=["against_fbgemm"],
        labels=TABLE2,
        interval="the range of our backbones",
    )


# --- Table 3 --------------------------------------------------------------------------------------


def table3_data(results, published=None, *, backbone="resnet50", engine="fbgemm", form="converted"):
    """Per-class metrics of one backbone: dataset, class, regime, metric, ours, low, high, paper, state."""
    published = published or paper_results()
    one_of("engine", engine, ENGINES)

    @cache
    def known(metric, klass):
        return (
            by_key(scores(results, metric, form=form, klass=klass), CELL),
            by_key(scores(published, metric, klass=klass), CELL),
        )

    rows = []
    for metric in ("auprc", "auroc"):
        for dataset in results.datasets:
            for klass in results.classes(dataset):
                ours, paper = known(metric, klass)
                for regime in ("fp32", f"ptq-{engine}", f"qat-{engine}"):
                    key = (counterpart(dataset), backbone, regime.removesuffix(f"-{engine}"))
                    rows.append(
                        {
                            "dataset": dataset,
                            "class": klass,
                            "regime": regime,
                            "metric": metric,
                            **entry(
                                ours.get((dataset, backbone, regime)),
                                paper.get(key, {}).get("value", math.nan),
                                cell_state(results, dataset, backbone, regime, form),
                            ),
                        }
                    )
    frame = pd.DataFrame(rows, columns=["dataset", "class", "regime", "metric", *FIELDS])
    order = {d: k for k, d in enumerate(results.datasets)}
    return frame.sort_values("dataset", key=lambda c: c.map(order), kind="stable").reset_index(drop=True)


def table3(results, published=None, dataset=None, *, backbone="resnet50", engine="fbgemm", form="converted"):
    """Table 3: per-class AUPRC and ROC-AUC of one backbone.

    With a `dataset`, the paper's subtable: rows are regimes, columns (class and metric, field). Without,
    all datasets: rows (dataset, class), columns (regime and metric, field). The paper does not say which
    engine its PTQ and QAT rows mean; `engine` chooses ours.
    """
    if dataset is not None and not results.datasets:
        raise UserError(f"{results.path}: holds no dataset yet; run `medq collect` first.")
    tidy = table3_data(results, published, backbone=backbone, engine=engine, form=form)
    if dataset is not None:
        tidy = tidy[tidy["dataset"] == one_of("dataset", dataset, results.datasets)]
        across = [(c, m) for c in results.classes(dataset) for m in ("auprc", "auroc")]
        labels = {f"{c} {m}": f"{class_title(dataset, c)} {title(m)}" for c, m in across}
        frame = wide_layout(
            tidy.assign(column=tidy["class"] + " " + tidy["metric"]), ["regime"], "column", list(labels)
        )
    else:
        labels = {
            f"{r} {m}": f"{title(r)} {title(m)}"
            for m in ("auprc", "auroc")
            for r in ("fp32", f"ptq-{engine}", f"qat-{engine}")
        }
        frame = wide_layout(
            tidy.assign(column=tidy["regime"] + " " + tidy["metric"]), ["dataset", "class"], "column", list(labels)
        )
    where = f", {title(dataset)}" if dataset else ""
    digits = "{:.2f}" if counterpart(dataset or "") == "SkinCancer" else "{:.3f}"
    return captioned(
        frame,
        f"Per-class AUPRC and ROC-AUC of {title(backbone)} across regimes{where}",
        f"In parentheses the 95 % bootstrap interval within the cell. {covers(results)}",
        "" if backbone == "resnet50" else "The paper's Table 3 is for ResNet-50 alone.",
        formats={None: digits},
        labels=labels,
    )


# --- Table 4 --------------------------------------------------------------------------------------

TABLE4 = {
    "fp32_p50": "FP32 p50 (ms)",
    "fp32_p99": "FP32 p99 (ms)",
    "int8_p50": "INT8-PTQ p50 (ms)",
    "int8_p99": "INT8-PTQ p99 (ms)",
    "fp32_tail": "FP32 p99/p50",
    "int8_tail": "INT8-PTQ p99/p50",
    "speedup": "Speedup (×)",
    "best_speedup": "Speedup over the best FP32 (×)",
    "size_ratio": "Size ↓ (×)",
}
TOO_FEW = "too few: p99 takes 368 batches"  # medq.timing.TAILS


def table4_data(results, published=None, *, batch_size=1, engine="fbgemm"):
    """CPU latency of FP32 and INT8-PTQ: backbone, quantity, ours, low, high, paper, state."""
    published = published or paper_results()
    one_of("engine", engine, ENGINES)
    regime = f"ptq-{engine}"
    ours, paper = latency_rows(results, batch_size, regime), latency_rows(published, batch_size, regime)
    ratios = published.ratios[(published.ratios["batch_size"] == batch_size) & (published.ratios["regime"] == regime)]
    for row in ratios.to_dict("records"):  # the paper prints these itself, from numbers it does not print
        for quantity in ("speedup", "size_ratio"):
            paper.setdefault(row["backbone"], {})[quantity] = {"value": row[quantity]}
    rows = []
    for backbone in results.backbones:
        for quantity in TABLE4:
            mine = ours.get(backbone, {}).get(quantity)
            theirs = paper.get(backbone, {}).get(quantity, {}).get("value", math.nan)
            timed, of_p99 = mine is not None and not math.isnan(mine["value"]), quantity.endswith(("_p99", "_tail"))
            state = "" if timed else TOO_FEW if mine is not None and of_p99 else _not_timed(results, backbone, regime)
            rows.append({"backbone": backbone, "quantity": quantity, **entry(mine, theirs, state)})
    return pd.DataFrame(rows, columns=["backbone", "quantity", *FIELDS])


def _not_timed(results, backbone, regime):
    states = {cell_state(results, d, backbone, regime) for d in results.datasets} - {""}
    kinds = {s for s in states if s.startswith("unsupported")}
    return sorted(kinds)[0] if kinds else "not timed"


def latency_rows(results, batch_size, regime):
    """{backbone: {quantity of TABLE4: {value, low, high}}} of one result set."""
    t = timings(results, batch_size)
    found = {}
    for kind, name in (("fp32", "fp32"), ("int8", regime)):
        for row in t[t["regime"] == name].to_dict("records"):
            q = found.setdefault(row["backbone"], {})
            q[f"{kind}_p50"] = {"value": row["p50_ms"], "low": row["p50_low"], "high": row["p50_high"]}
            q[f"{kind}_p99"] = {"value": row["p99_ms"], "low": row["p99_low"], "high": row["p99_high"]}
            q[f"{kind}_tail"] = {k: q[f"{kind}_p99"][k] / row["p50_ms"] for k in ("value", "low", "high")}
            q.setdefault("sizes", {})[kind] = row["size_mb"]
    ups = speedups(results, batch_size=batch_size, regime=regime)
    for row in ups.to_dict("records"):
        q = found.setdefault(row["backbone"], {})
        q["speedup" if row["baseline"] == "eager" else "best_speedup" if row["best"] else "other"] = row
        if row["baseline"] == "eager" and row["best"]:
            q["best_speedup"] = row
    for q in found.values():
        sizes = q.pop("sizes", {})
        q["size_ratio"] = {"value": sizes.get("fp32", math.nan) / sizes.get("int8", math.nan)}
    return found


def speedups(results, *, batch_size=1, regime="ptq-fbgemm"):
    """Speed-up of an INT8 regime over every FP32 baseline: backbone, baseline, value, low, high, best.

    The ratio of median batch times with its 95 % interval (`medq.timing.ratio`); where no batch times are stored, that of
    throughputs. `best` marks the fastest FP32 baseline of the backbone.
    """
    t = results.latency
    t = t[(t["batch_size"] == batch_size) & t["device"].isin(["cpu", ""])]
    t = t.groupby(["backbone", "regime", "baseline"])["throughput"].median()
    raw = results.latency_raw
    raw = dict(list(raw[raw["batch_size"] == batch_size].groupby(["backbone", "regime", "baseline"])["ms"]))
    rows = []
    for backbone in results.backbones:
        int8 = [key for key in t.index if key[:2] == (backbone, regime)]
        fp32 = [key for key in t.index if key[:2] == (backbone, "fp32")]
        if not int8 or not fp32:
            continue
        best = max(fp32, key=lambda key: t[key])
        for key in fp32:
            found = t[int8[0]] / t[key], math.nan, math.nan
            if key in raw and int8[0] in raw:
                found = timing.ratio(raw[key], raw[int8[0]])
            named = {"backbone": backbone, "baseline": key[2] or "eager", "best": key == best}
            rows.append(named | dict(zip(("value", "low", "high"), found)))
    return captioned(
        pd.DataFrame(rows, columns=["backbone", "baseline", "value", "low", "high", "best"]),
        f"Speed-up of {title(regime)} over every FP32 baseline",
        formats={None: "{:.2f}"},
        labels={"value": "Speed-up (×)", "low": "95 % from", "high": "to", "best": "Fastest FP32"},
    )


def table4(results, published=None, *, batch_size=1, engine="fbgemm"):
    """Table 4: CPU latency at single-image inference, speed-up and size, FP32 against INT8-PTQ.

    Rows are backbones; columns (quantity, field). Milliseconds are the machine's: ratios are compared with
    the paper's.
    """
    frame = wide_layout(
        table4_data(results, published, batch_size=batch_size, engine=engine), ["backbone"], "quantity", list(TABLE4)
    )
    return captioned(
        frame,
        f"CPU latency at batch {batch_size}, FP32 and INT8-PTQ ({engine}), speed-up and size",
        "In parentheses a 95 % interval from 20 consecutive blocks of batches (none for p99). That of a median supposes a "
        "machine that does not drift; that of a speed-up does not.",
        "Milliseconds belong to the machine; the ratios can be compared.",
        formats={
            "speedup": "{:.2f}",
            "best_speedup": "{:.2f}",
            "size_ratio": "{:.2f}",
            "fp32_tail": "{:.2f}",
            "int8_tail": "{:.2f}",
            None: "{:.1f}",
        },
        labels=TABLE4,
        compared=["fp32_tail", "int8_tail", "speedup", "size_ratio"],
    )
