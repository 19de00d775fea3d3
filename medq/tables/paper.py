"""Tables 1 to 4 of the paper: our number beside the paper's, one row per number (columns `FIELDS`)."""

import math
from functools import cache

import pandas as pd

from medq import timing
from medq.errors import one_of
from medq.results import CELL, ENGINES, counterpart, family, means, scores, timings
from medq.results import published as paper_results
from medq.tables.entries import FIELDS, PAPER_REGIMES, by_key, cell_state, entry, mean_state

# --- Table 1 --------------------------------------------------------------------------------------


def table1(results, published=None, *, form="fake-quant"):
    """Table 1, ECE and Brier, mean over backbones: dataset, metric, regime, FIELDS, between_std.

    `form` `fake-quant` is the paper's, `converted` what is deployed. The control `fp32-continued` comes last
    and is not among the paper's six regimes.
    """
    published = published or paper_results()
    tables = {
        m: [by_key(means(r, m, form=s), ["dataset", "regime"]) for r, s in ((results, form), (published, "fake-quant"))]
        for m in ("ece", "brier")
    }
    rows = []
    for dataset in results.datasets:
        for metric, (ours, paper) in tables.items():
            for regime in PAPER_REGIMES + [r for r in results.regimes if r not in PAPER_REGIMES]:
                mine = ours.get((dataset, regime))
                theirs = paper.get((counterpart(dataset), regime), {}).get("value", math.nan)
                transcribed = mine and not mine["backbones"]  # a published mean, whose backbones are not here
                state = (
                    "" if transcribed else mean_state(results, dataset, regime, mine["backbones"] if mine else (), form)
                )
                spread = mine["between_std"] if mine else math.nan
                rows.append([dataset, metric, regime, *entry(mine, theirs, state).values(), spread])
    return pd.DataFrame(rows, columns=["dataset", "metric", "regime", *FIELDS, "between_std"])


# --- Table 2 --------------------------------------------------------------------------------------

TABLE2 = {
    "throughput": "Throughput (images/s)",
    "p50_ms": "p50 (ms per batch)",
    "convert_seconds": "Convert (s)",
    "against_fbgemm": "Throughput, times FBGEMM's",
}


def table2(results, published=None, *, batch_size=32):
    """Table 2, CPU efficiency of INT8-PTQ by family: dataset, family, engine, quantity, FIELDS.

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
                    fields = entry(row, theirs.iloc[0] if len(theirs) else math.nan, state).values()
                    rows.append([dataset, kind, engine, quantity, *fields])
    return pd.DataFrame(rows, columns=["dataset", "family", "engine", "quantity", *FIELDS])


def _family_rows(results, dataset, kind, regime, batch_size):
    t = results.latency
    t = t[t["dataset"].isin([dataset, ""]) & t["device"].isin(["cpu", ""])]
    t = t[(t["regime"] == regime) & (t["batch_size"] == batch_size)]
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


# --- Table 3 --------------------------------------------------------------------------------------


def table3(results, published=None, *, dataset=None, backbone="resnet50", engine="fbgemm", form="converted"):
    """Table 3, metrics of each class of one backbone: dataset, class, regime, metric, FIELDS.

    All datasets, or one. The paper does not say which engine its PTQ and QAT rows mean; `engine` chooses ours.
    """
    published = published or paper_results()
    one_of("engine", engine, ENGINES)
    datasets = results.datasets if dataset is None else [one_of("dataset", dataset, results.datasets)]

    @cache
    def known(metric, klass):
        return [
            by_key(scores(r, metric, klass=klass, **o), CELL) for r, o in ((results, {"form": form}), (published, {}))
        ]

    rows = []
    for name in datasets:
        for klass in results.classes(name):
            for metric in ("auprc", "auroc"):
                ours, paper = known(metric, klass)
                for regime in ("fp32", f"ptq-{engine}", f"qat-{engine}"):
                    theirs = paper.get((counterpart(name), backbone, regime.removesuffix(f"-{engine}")), {})
                    state = cell_state(results, name, backbone, regime, form)
                    fields = entry(ours.get((name, backbone, regime)), theirs.get("value", math.nan), state).values()
                    rows.append([name, klass, regime, metric, *fields])
    return pd.DataFrame(rows, columns=["dataset", "class", "regime", "metric", *FIELDS])


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


def table4(results, published=None, *, batch_size=1, engine="fbgemm"):
    """Table 4, CPU latency of FP32 and INT8-PTQ, speed-up and size: backbone, quantity, FIELDS."""
    published = published or paper_results()
    regime = f"ptq-{one_of('engine', engine, ENGINES)}"
    ours, paper = latency_rows(results, batch_size, regime), latency_rows(published, batch_size, regime)
    ratios = published.ratios[(published.ratios["batch_size"] == batch_size) & (published.ratios["regime"] == regime)]
    for row in ratios.to_dict("records"):  # the paper gives these itself, from numbers that it does not give
        for quantity in ("speedup", "size_ratio"):
            paper.setdefault(row["backbone"], {})[quantity] = {"value": row[quantity]}
    rows = []
    for backbone in results.backbones:
        for quantity in TABLE4:
            mine = ours.get(backbone, {}).get(quantity)
            theirs = paper.get(backbone, {}).get(quantity, {}).get("value", math.nan)
            timed, of_p99 = mine is not None and not math.isnan(mine["value"]), quantity.endswith(("_p99", "_tail"))
            state = "" if timed else TOO_FEW if mine is not None and of_p99 else _not_timed(results, backbone, regime)
            rows.append([backbone, quantity, *entry(mine, theirs, state).values()])
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
    for row in speedups(results, batch_size=batch_size, regime=regime).to_dict("records"):
        q = found.setdefault(row["backbone"], {})
        if row["baseline"] == "eager":
            q["speedup"] = row
        if row["best"]:
            q["best_speedup"] = row
    for q in found.values():
        sizes = q.pop("sizes", {})
        q["size_ratio"] = {"value": sizes.get("fp32", math.nan) / sizes.get("int8", math.nan)}
    return found


def speedups(results, *, batch_size=1, regime="ptq-fbgemm"):
    """Speed-up of an INT8 regime over every FP32 baseline: backbone, baseline, value, low, high, best.

    The ratio of median batch times with its 95 % interval (`medq.timing.ratio`); where no batch times are stored, that of
    throughputs. `best` marks the fastest FP32 baseline of the backbone, which a user would really have.
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
        best = max(fp32, key=lambda key: t[key], default=None)
        for key in fp32 if int8 else ():
            timed = key in raw and int8[0] in raw
            found = timing.ratio(raw[key], raw[int8[0]]) if timed else (t[int8[0]] / t[key], math.nan, math.nan)
            rows.append([backbone, key[2] or "eager", *found, key == best])
    return pd.DataFrame(rows, columns=["backbone", "baseline", "value", "low", "high", "best"])
