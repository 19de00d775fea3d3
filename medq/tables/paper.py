"""Tables 1 to 4 of the paper: our number beside the paper's, one row per number (columns `FIELDS`)."""

import math

import pandas as pd

from medq import timing
from medq.errors import one_of
from medq.regimes import ENGINES, PAPER_ENGINES
from medq.results import CELL, counterpart, cpu_times, family, means, published, scores, timings
from medq.tables.entries import FIELDS, PAPER_REGIMES, by_key, cell_state, entry, mean_state


def table1(results, *, form="fake-quant"):
    """Table 1, ECE and Brier, mean over backbones: dataset, metric, regime, FIELDS, between_std.

    `form` `fake-quant` is the paper's, `converted` what is deployed. The control `fp32-continued` comes last
    and is not among the paper's six regimes.
    """
    sides = (results, form), (published(), "fake-quant")
    tables = {m: [by_key(means(r, m, form=f), ["dataset", "regime"]) for r, f in sides] for m in ("ece", "brier")}
    rows = []
    for dataset in results.datasets:
        for metric, (ours, paper) in tables.items():
            for regime in PAPER_REGIMES + [r for r in results.regimes if r not in PAPER_REGIMES]:
                mine = ours.get((dataset, regime), {})
                theirs = paper.get((counterpart(dataset), regime), {}).get("value", math.nan)
                used = mine.get("backbones", ())
                exact = mine and not used  # the paper's own means
                state = "" if exact else mean_state(results, dataset, regime, used, form)
                fields = entry(mine, theirs, state).values()
                rows.append([dataset, metric, regime, *fields, mine.get("between_std", math.nan)])
    return pd.DataFrame(rows, columns=["dataset", "metric", "regime", *FIELDS, "between_std"])


TABLE2 = ("throughput", "p50_ms", "convert_seconds", "against_fbgemm")


def table2(results):
    """Table 2, CPU efficiency of INT8-PTQ at batch 32 by family: dataset, family, engine, quantity, FIELDS.

    `ours` is the median over the family's backbones, `low` and `high` the least and the greatest of them.
    """
    rows = []
    engines = [e for e in ENGINES if e in PAPER_ENGINES or f"ptq-{e}" in results.regimes]
    for dataset in results.datasets:
        for kind in ("cnn", "transformer"):
            backbones = [b for b in results.backbones if family(b) == kind]
            ours = _efficiency(results, (dataset, ""), backbones)
            paper = _efficiency(published(), (counterpart(dataset),), (kind,))
            for engine in engines:
                states = {cell_state(results, dataset, b, f"ptq-{engine}") for b in backbones} - {""}
                untimed = " / ".join(sorted(states)) or ("not timed" if backbones else "no such backbone here")
                for quantity in TABLE2:
                    values, theirs = (t.loc[t["regime"] == f"ptq-{engine}", quantity].dropna() for t in (ours, paper))
                    row = {"value": values.median(), "low": values.min(), "high": values.max()}
                    fields = entry(row, theirs.iloc[0] if len(theirs) else math.nan, "" if len(values) else untimed)
                    rows.append([dataset, kind, engine, quantity, *fields.values()])
    return pd.DataFrame(rows, columns=["dataset", "family", "engine", "quantity", *FIELDS])


def _efficiency(results, datasets, backbones):
    """Rows of latency.csv on the CPU at batch 32, one per regime and backbone, with `against_fbgemm`."""
    t = cpu_times(results, 32)
    t = t[t["dataset"].isin(datasets) & t["backbone"].isin(backbones)]
    t = t.drop_duplicates(["regime", "backbone"], keep="last")
    fbgemm = t[t["regime"] == "ptq-fbgemm"].set_index("backbone")["throughput"]
    return t.assign(against_fbgemm=t["throughput"] / t["backbone"].map(fbgemm).astype(float))


def table3(results, *, dataset=None, backbone="resnet50"):
    """Table 3, metrics of each class of one backbone: dataset, class, regime, metric, FIELDS.

    All datasets, or one. The paper does not say which engine its PTQ and QAT rows mean; ours are of FBGEMM.
    """
    rows = []
    for name in results.datasets if dataset is None else [one_of("dataset", dataset, results.datasets)]:
        for klass in results.classes(name):
            for metric in ("auprc", "auroc"):
                ours, paper = (by_key(scores(r, metric, klass=klass), CELL) for r in (results, published()))
                for regime in ("fp32", "ptq-fbgemm", "qat-fbgemm"):
                    theirs = paper.get((counterpart(name), backbone, regime.removesuffix("-fbgemm")), {})
                    state = cell_state(results, name, backbone, regime)
                    fields = entry(ours.get((name, backbone, regime)), theirs.get("value", math.nan), state).values()
                    rows.append([name, klass, regime, metric, *fields])
    return pd.DataFrame(rows, columns=["dataset", "class", "regime", "metric", *FIELDS])


TABLE4 = "fp32_p50 fp32_p99 int8_p50 int8_p99 fp32_tail int8_tail speedup best_speedup size_ratio".split()
TOO_FEW = "too few: p99 takes 368 batches"  # medq.timing.TAILS


def table4(results):
    """Table 4, CPU latency at batch 1, speed-up and size per backbone: backbone, quantity (of `TABLE4`), FIELDS.

    `speedup` compares INT8-PTQ (FBGEMM) with eager FP32, as the paper does, `best_speedup` with the fastest FP32
    baseline that was timed. Milliseconds of two machines cannot be compared; ratios can.
    """
    ours, paper = _latencies(results), _latencies(published())
    for row in published().ratios.to_dict("records"):  # which the paper computes from numbers that it does not print
        paper |= {(row["backbone"], ratio): {"value": row[ratio]} for ratio in ("speedup", "size_ratio")}
    rows = []
    for backbone in results.backbones:
        states = {cell_state(results, d, backbone, "ptq-fbgemm") for d in results.datasets}
        untimed = min((s for s in states if s.startswith("unsupported")), default="not timed")
        for quantity in TABLE4:
            mine, theirs = ours.get((backbone, quantity)), paper.get((backbone, quantity), {}).get("value", math.nan)
            timed, of_p99 = mine is not None and not math.isnan(mine["value"]), quantity.endswith(("_p99", "_tail"))
            state = "" if timed else TOO_FEW if mine is not None and of_p99 else untimed
            rows.append([backbone, quantity, *entry(mine, theirs, state).values()])
    return pd.DataFrame(rows, columns=["backbone", "quantity", *FIELDS])


def _latencies(results):
    """{(backbone, quantity of TABLE4): {value, low, high}} of one result set."""
    t, found = timings(results, 1), {}
    for kind, regime in (("fp32", "fp32"), ("int8", "ptq-fbgemm")):
        for row in t[t["regime"] == regime].to_dict("records"):
            b = row["backbone"]
            found[b, f"{kind}_p50"] = {"value": row["p50_ms"], "low": row["p50_low"], "high": row["p50_high"]}
            found[b, f"{kind}_p99"] = {"value": row["p99_ms"]}
            found[b, f"{kind}_tail"] = {"value": row["p99_ms"] / row["p50_ms"]}
    for row in speedups(results).to_dict("records"):
        found |= {(row["backbone"], "speedup"): row} if row["baseline"] == "eager" else {}
        found |= {(row["backbone"], "best_speedup"): row} if row["best"] else {}
    size = t.pivot(index="backbone", columns="regime", values="size_mb").reindex(columns=["fp32", "ptq-fbgemm"])
    return found | {(b, "size_ratio"): {"value": v} for b, v in (size["fp32"] / size["ptq-fbgemm"]).items()}


def speedups(results, *, regime="ptq-fbgemm"):
    """Speed-up of an INT8 regime over every FP32 baseline at batch 1: backbone, baseline, value, low, high, best.

    The ratio of median batch times with its 95 % interval (`medq.timing.ratio`); where no batch times are stored, that of
    throughputs. `best` marks the fastest FP32 baseline of the backbone, which a user would really have.
    """
    keys = ["backbone", "regime", "baseline"]
    t = cpu_times(results, 1).groupby(keys)["throughput"].median()
    raw = dict(list(results.latency_raw.query("batch_size == 1").groupby(keys)["ms"]))
    rows = []
    for backbone in results.backbones:
        int8, fp32 = ([key for key in t.index if key[:2] == (backbone, r)] for r in (regime, "fp32"))
        best = max(fp32, key=t.get, default=None)
        for key in fp32 if int8 else ():
            timed = key in raw and int8[0] in raw
            found = timing.ratio(raw[key], raw[int8[0]]) if timed else (t[int8[0]] / t[key], math.nan, math.nan)
            rows.append([backbone, key[2] or "eager", *found, key == best])
    return pd.DataFrame(rows, columns=["backbone", "baseline", "value", "low", "high", "best"])
