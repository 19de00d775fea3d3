"""Tables 1 to 4 in the paper's own layout, and the tables beyond it: pure functions of a result folder.

A table beside the paper has two levels of columns: the paper's column, and a field of `FIELDS`. `ours` with
its 95 % interval `low` .. `high` stands beside `paper`; `state` says in words what is missing, unsupported
or doubtful. `show` renders any table of this module as HTML, and `data` returns what lies behind each table
and figure, one row per number.
"""

import math
import re
from functools import cache

import numpy as np
import pandas as pd

from medq.errors import one_of
from medq.results import (CELL, CONTROL, ENGINES, LOWER_IS_BETTER, REGIMES, class_title, counterpart, family,
                          means,
                          published as paper_results, scores, timings, title)

FIELDS = ("ours", "low", "high", "paper", "state")
PAPER_REGIMES = [r for r in REGIMES if r != CONTROL]
DISAGREES = "kernels disagree with their simulation"
COLLAPSE = 0.10  # a recipe collapses a model if it costs this much AUPRC, or adds this much top-label ECE


def _caption(frame, caption, *notes, **attributes):
    """Attach what `show` needs: caption, notes, and formats (column or row label -> format)."""
    frame.attrs = {"caption": caption, "notes": [n for n in notes if n], **attributes}
    return frame


def _wide(tidy, rows, column, order):
    """Tidy entries as the paper's layout: `rows` down, `column` across in `order`, FIELDS below each
    column."""
    columns = pd.MultiIndex.from_product([order, FIELDS], names=[column, "field"])
    if tidy.empty:
        return pd.DataFrame(columns=columns, index=pd.MultiIndex.from_arrays([[]] * len(rows), names=rows))
    wide = tidy.pivot(index=rows, columns=column, values=list(FIELDS)).swaplevel(axis=1)
    wide = wide.reindex(columns=columns)
    found = tidy[rows].drop_duplicates()
    return wide.reindex(pd.MultiIndex.from_frame(found) if len(rows) > 1 else pd.Index(found[rows[0]]))


def _at(frame, keys):
    """Rows of a frame as {key: row dict}."""
    return {tuple(row[k] for k in keys): row for row in frame.to_dict("records")}


def _entry(row, paper, state=""):
    found = row or {}
    return {"ours": found.get("value", math.nan), "low": found.get("low", math.nan),
            "high": found.get("high", math.nan), "paper": paper, "state": state}


def cell_state(results, dataset, backbone, regime, stage="converted"):
    """In words what a reader must know about a cell before its number; empty for a sound one."""
    cell = results.state(dataset, backbone, regime)
    if cell["status"] != "done":
        return cell["status"] + (f": {cell['reason']}" if cell["reason"] else "")
    if cell["engine_agrees"] is False and stage == "converted":
        return DISAGREES + (f": {cell['note']}" if cell["note"] else "")
    return ""


def mean_state(results, dataset, regime, used, stage):
    """In words which backbones a mean lacks, and in which of them the engine's kernels are wrong."""
    if not used:
        states = {cell_state(results, dataset, b, regime, stage) for b in results.backbones} - {""}
        kinds, reasons = (sorted({s.partition(": ")[k] for s in states} - {""}) for k in (0, 2))
        return (" / ".join(kinds) or "missing") + (f": {'; '.join(reasons)}" if reasons else "")
    parts = []
    lacking = [b for b in results.backbones if b not in used]
    if lacking:
        why = [f"{title(b)} {cell_state(results, dataset, b, regime, stage) or 'missing'}" for b in lacking]
        parts.append(f"{len(used)} of {len(results.backbones)} backbones ({'; '.join(why)})")
    wrong = [title(b) for b in used if cell_state(results, dataset, b, regime, stage).startswith(DISAGREES)]
    if wrong:
        parts.append(f"{DISAGREES}: {', '.join(wrong)}")
    return "; ".join(parts)


# --- Table 1 --------------------------------------------------------------------------------------

def table1_data(results, published=None, *, stage="fake-quant"):
    """ECE and Brier, mean over backbones: dataset, metric, regime, ours, low, high, paper, state,
    between_std."""
    published = published or paper_results()
    rows = []
    for metric in ("ece", "brier"):
        ours = _at(means(results, metric, stage=stage), ["dataset", "regime"])
        paper = _at(means(published, metric, stage="fake-quant"), ["dataset", "regime"])
        for dataset in results.datasets:
            for regime in _regimes(results):
                mine = ours.get((dataset, regime))
                theirs = paper.get((counterpart(dataset), regime), {}).get("value", math.nan)
                printed = mine and not mine["backbones"]  # somebody's mean, of backbones that are not here
                used = mine["backbones"] if mine else ()
                state = "" if printed else mean_state(results, dataset, regime, used, stage)
                rows.append({"dataset": dataset, "metric": metric, "regime": regime,
                             **_entry(mine, theirs, state),
                             "between_std": mine["between_std"] if mine else math.nan})
    order = {d: k for k, d in enumerate(results.datasets)}
    frame = pd.DataFrame(rows, columns=["dataset", "metric", "regime", *FIELDS, "between_std"])
    return frame.sort_values("dataset", key=lambda c: c.map(order), kind="stable").reset_index(drop=True)


def _regimes(results):
    """The paper's six regimes, and the control where it was run."""
    return PAPER_REGIMES + [r for r in results.regimes if r not in PAPER_REGIMES]


def table1(results, published=None, *, stage="fake-quant"):
    """Table 1: calibration summary across backbones. `stage` `fake-quant` is the paper's, `converted` what
    is deployed.

    Rows (dataset, metric); columns (regime, field). The control `fp32-continued` comes last and is not
    among the six.
    """
    tidy = table1_data(results, published, stage=stage)
    frame = _wide(tidy, ["dataset", "metric"], "regime", _regimes(results))
    what = ("fake-quantized models, as in the paper's Table 1" if stage == "fake-quant" else
            "converted models, as they would be deployed")
    return _caption(frame, f"Calibration summary across backbones: ECE and Brier ({what}; lower is better)",
                    "Mean over backbones, with the 95 % bootstrap interval of that mean.", best="min",
                    formats={None: "{:.4f}"}, best_among=PAPER_REGIMES)


# --- Table 2 --------------------------------------------------------------------------------------

TABLE2 = {"throughput": "Throughput (images/s)", "p50_ms": "p50 (ms per batch)",
          "convert_seconds": "Convert (s)",
          "against_fbgemm": "Throughput, times FBGEMM's"}


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
                    row = {} if values.empty else {"value": values.median(), "low": values.min(),
                                                   "high": values.max()}
                    theirs = _efficiency(paper, engine, quantity)
                    state = "" if len(values) else _untimed(results, dataset, kind, f"ptq-{engine}")
                    rows.append({"dataset": dataset, "family": kind, "engine": engine, "quantity": quantity,
                                 **_entry(row, theirs.iloc[0] if len(theirs) else math.nan, state)})
    return pd.DataFrame(rows, columns=["dataset", "family", "engine", "quantity", *FIELDS])


def _family_rows(results, dataset, kind, regime, batch_size):
    t = results.latency
    t = t[t["dataset"].isin([dataset, ""]) & (t["regime"] == regime) & (t["batch_size"] == batch_size)
          & t["device"].isin(["cpu", ""])]
    t = t[t["backbone"].isin([b for b in results.backbones if family(b) == kind])]
    return t.drop_duplicates("backbone", keep="last").set_index("backbone")


def _published_family(published, dataset, kind, regime):
    t = published.latency
    return t[(t["dataset"] == dataset) & (t["backbone"] == kind)
             & (t["regime"] == regime)].set_index("backbone")


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
    frame = _wide(table2_data(results, published, batch_size=batch_size), ["dataset", "family", "engine"],
                  "quantity",
                  list(TABLE2))
    once = results.latency["dataset"].eq("").any()
    return _caption(frame, f"CPU efficiency of INT8-PTQ at batch {batch_size} (median within the family)",
                    "In parentheses the least and the greatest of the family's backbones.",
                    "Timed once per backbone, not per dataset: only the classifier's width differs."
                    if once else "",
                    "Seconds and milliseconds belong to the machine; the last column can be compared.",
                    formats={"throughput": "{:.1f}", "p50_ms": "{:.0f}", "convert_seconds": "{:.1f}",
                             "against_fbgemm": "{:.2f}"},
                    compared=["against_fbgemm"], labels=TABLE2, interval="the range of our backbones")


# --- Table 3 --------------------------------------------------------------------------------------

def table3_data(results, published=None, *, backbone="resnet50", engine="fbgemm", stage="converted"):
    """Per-class metrics of one backbone: dataset, class, regime, metric, ours, low, high, paper, state."""
    published = published or paper_results()
    one_of("engine", engine, ENGINES)

    @cache
    def known(metric, klass):
        return (_at(scores(results, metric, stage=stage, klass=klass), CELL),
                _at(scores(published, metric, klass=klass), CELL))

    rows = []
    for metric in ("auprc", "auroc"):
        for dataset in results.datasets:
            for klass in results.classes(dataset):
                ours, paper = known(metric, klass)
                for regime in ("fp32", f"ptq-{engine}", f"qat-{engine}"):
                    key = (counterpart(dataset), backbone, regime.removesuffix(f"-{engine}"))
                    rows.append({"dataset": dataset, "class": klass, "regime": regime, "metric": metric,
                                 **_entry(ours.get((dataset, backbone, regime)),
                                          paper.get(key, {}).get("value", math.nan),
                                          cell_state(results, dataset, backbone, regime, stage))})
    frame = pd.DataFrame(rows, columns=["dataset", "class", "regime", "metric", *FIELDS])
    order = {d: k for k, d in enumerate(results.datasets)}
    return frame.sort_values("dataset", key=lambda c: c.map(order), kind="stable").reset_index(drop=True)


def table3(results, published=None, dataset=None, *, backbone="resnet50", engine="fbgemm", stage="converted"):
    """Table 3: per-class AUPRC and ROC-AUC of one backbone.

    With a `dataset`, the paper's subtable: rows are regimes, columns (class and metric, field). Without,
    all datasets: rows (dataset, class), columns (regime and metric, field). The paper does not say which
    engine its PTQ and QAT rows mean; `engine` chooses ours.
    """
    tidy = table3_data(results, published, backbone=backbone, engine=engine, stage=stage)
    if dataset is not None:
        tidy = tidy[tidy["dataset"] == one_of("dataset", dataset, results.datasets)]
        across = [(c, m) for c in results.classes(dataset) for m in ("auprc", "auroc")]
        labels = {f"{c} {m}": f"{class_title(dataset, c)} {title(m)}" for c, m in across}
        frame = _wide(tidy.assign(column=tidy["class"] + " " + tidy["metric"]), ["regime"], "column",
                      list(labels))
    else:
        labels = {f"{r} {m}": f"{title(r)} {title(m)}" for m in ("auprc", "auroc")
                  for r in ("fp32", f"ptq-{engine}", f"qat-{engine}")}
        frame = _wide(tidy.assign(column=tidy["regime"] + " " + tidy["metric"]), ["dataset", "class"],
                      "column",
                      list(labels))
    where = f", {title(dataset)}" if dataset else ""
    digits = "{:.2f}" if counterpart(dataset or "") == "SkinCancer" else "{:.3f}"
    return _caption(frame, f"Per-class AUPRC and ROC-AUC of {title(backbone)} across regimes{where}",
                    "In parentheses the 95 % bootstrap interval within the cell.",
                    "" if backbone == "resnet50" else "The paper's Table 3 is for ResNet-50 alone.",
                    formats={None: digits}, labels=labels)


# --- Table 4 --------------------------------------------------------------------------------------

TABLE4 = {"fp32_p50": "FP32 p50 (ms)", "fp32_p99": "FP32 p99 (ms)", "int8_p50": "INT8-PTQ p50 (ms)",
          "int8_p99": "INT8-PTQ p99 (ms)", "fp32_tail": "FP32 p99/p50", "int8_tail": "INT8-PTQ p99/p50",
          "speedup": "Speedup (×)", "best_speedup": "Speedup over the best FP32 (×)",
          "size_ratio": "Size ↓ (×)"}


def table4_data(results, published=None, *, batch_size=1, engine="fbgemm"):
    """CPU latency of FP32 and INT8-PTQ: backbone, quantity, ours, low, high, paper, state."""
    published = published or paper_results()
    one_of("engine", engine, ENGINES)
    regime = f"ptq-{engine}"
    ours, paper = _latency_rows(results, batch_size, regime), _latency_rows(published, batch_size, regime)
    ratios = published.ratios[(published.ratios["batch_size"] == batch_size)
                              & (published.ratios["regime"] == regime)]
    for row in ratios.to_dict("records"):  # the paper prints these itself, from numbers it does not print
        for quantity in ("speedup", "size_ratio"):
            paper.setdefault(row["backbone"], {})[quantity] = {"value": row[quantity]}
    rows = []
    for backbone in results.backbones:
        for quantity in TABLE4:
            mine = ours.get(backbone, {}).get(quantity)
            theirs = paper.get(backbone, {}).get(quantity, {}).get("value", math.nan)
            timed = mine is not None and not math.isnan(mine["value"])
            state = "" if timed else _not_timed(results, backbone, regime)
            rows.append({"backbone": backbone, "quantity": quantity, **_entry(mine, theirs, state)})
    return pd.DataFrame(rows, columns=["backbone", "quantity", *FIELDS])


def _not_timed(results, backbone, regime):
    states = {cell_state(results, d, backbone, regime) for d in results.datasets} - {""}
    kinds = {s for s in states if s.startswith("unsupported")}
    return sorted(kinds)[0] if kinds else "not timed"


def _latency_rows(results, batch_size, regime):
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


def speedups(results, *, batch_size=1, regime="ptq-fbgemm", n_resamples=500, seed=42):
    """Speed-up of an INT8 regime over every FP32 baseline: backbone, baseline, value, low, high, best.

    The ratio of throughputs, as in Table 4, with a 95 % bootstrap interval over the raw batch times where
    they are stored. `best` marks the fastest FP32 baseline of the backbone, which is what a user would
    really have.
    """
    t = results.latency
    t = t[(t["batch_size"] == batch_size) & t["device"].isin(["cpu", ""])]
    t = t.groupby(["backbone", "regime", "baseline"])["throughput"].median()
    raw = results.latency_raw
    raw = dict(list(raw[raw["batch_size"] == batch_size].groupby(["backbone", "regime", "baseline"])["ms"]))
    rng, rows = np.random.default_rng(seed), []
    for backbone in results.backbones:
        int8 = [key for key in t.index if key[:2] == (backbone, regime)]
        fp32 = [key for key in t.index if key[:2] == (backbone, "fp32")]
        if not int8 or not fp32:
            continue
        best = max(fp32, key=lambda key: t[key])
        for key in fp32:
            low, high = _ratio_interval(raw.get(key), raw.get(int8[0]), n_resamples, rng)
            rows.append({"backbone": backbone, "baseline": key[2] or "eager", "value": t[int8[0]] / t[key],
                         "low": low, "high": high, "best": key == best})
    return pd.DataFrame(rows, columns=["backbone", "baseline", "value", "low", "high", "best"])


def _ratio_interval(slow, fast, n_resamples, rng):
    if slow is None or fast is None:
        return math.nan, math.nan
    draws = [rng.choice(x.to_numpy(), (n_resamples, len(x))).mean(1) for x in (slow, fast)]
    return tuple(np.quantile(draws[0] / draws[1], [.025, .975]))


def table4(results, published=None, *, batch_size=1, engine="fbgemm"):
    """Table 4: CPU latency at single-image inference, speed-up and size, FP32 against INT8-PTQ.

    Rows are backbones; columns (quantity, field). Milliseconds are the machine's: ratios are compared with
    the paper's.
    """
    frame = _wide(table4_data(results, published, batch_size=batch_size, engine=engine), ["backbone"],
                  "quantity",
                  list(TABLE4))
    return _caption(frame, f"CPU latency at batch {batch_size}, FP32 and INT8-PTQ ({engine}), speed-up and "
                           "size",
                    "In parentheses a 95 % interval: distribution-free for percentiles, bootstrap for "
                    "speed-ups.",
                    "Milliseconds belong to the machine; the ratios can be compared.",
                    formats={"speedup": "{:.2f}", "best_speedup": "{:.2f}", "size_ratio": "{:.2f}",
                             "fp32_tail": "{:.2f}", "int8_tail": "{:.2f}", None: "{:.1f}"}, labels=TABLE4,
                    compared=["fp32_tail", "int8_tail", "speedup", "size_ratio"])


# --- beyond the paper -----------------------------------------------------------------------------

def engine_check(results, metric="brier"):
    """Does each INT8 engine compute what the model's own simulation says? One row per INT8 cell, worst first.

    Columns: dataset, backbone, regime, agrees, fp32, simulated, converted, mended, gap (converted -
    simulated, in the direction of worse), worst_layer, max_steps (largest error of a kernel, in
    quantization steps), note.
    """
    simulated, converted = (_at(scores(results, metric, stage=s), CELL) for s in ("fake-quant", "converted"))
    mended = _at(scores(results, metric, recipe="mended"), CELL)
    worst = results.layers.dropna(subset=["kernel_max_steps"]).sort_values("kernel_max_steps")
    layers, sign = _at(worst.drop_duplicates(CELL, keep="last"), CELL), 1 if metric in LOWER_IS_BETTER else -1
    rows = []
    for cell in results.status.to_dict("records"):
        key = tuple(cell[c] for c in CELL)
        if not key[2].startswith(("ptq", "qat")):
            continue
        value = {n: f.get(key, {}).get("value", math.nan) for n, f in
                 (("simulated", simulated), ("converted", converted), ("mended", mended))}
        layer = layers.get(key, {})
        rows.append({**dict(zip(CELL, key)),
                     "agrees": {True: "yes", False: "NO"}.get(cell["engine_agrees"], ""),
                     "fp32": converted.get((*key[:2], "fp32"), {}).get("value", math.nan), **value,
                     "gap": sign * (value["converted"] - value["simulated"]),
                     "worst_layer": layer.get("layer", ""),
                     "max_steps": layer.get("kernel_max_steps", math.nan),
                     "note": cell["note"] or cell_state(results, *key)})
    columns = [*CELL, "agrees", "fp32", "simulated", "converted", "mended", "gap", "worst_layer", "max_steps",
               "note"]
    frame = pd.DataFrame(rows, columns=columns).sort_values("gap", ascending=False, kind="stable",
                                                            na_position="last")
    return _caption(frame.reset_index(drop=True),
                    f"Converted models against their own simulation ({title(metric)})",
                    "gap: how much worse the converted model is than its fake-quantized simulation.",
                    formats={None: "{:.4f}", "max_steps": "{:.0f}"})


FACTORS = ("weights", "activations", "reduce_range", "fused", "training_mode", "normalised")
SWITCHES = {("reduce_range", "true"): "reduced range", ("reduce_range", "false"): "full range",
            ("fused", "fused"): "batch norm fused", ("fused", "unfused"): "batch norm not fused",
            ("fused", "traced"): "batch norm as traced",
            ("training_mode", "true"): "observers fed in training mode",
            ("training_mode", "false"): "observers fed in evaluation mode",
            ("normalised", "true"): "calibration images normalised",
            ("normalised", "false"): "calibration images not normalised"}


def recipe_means(results, stage):
    """One row per dataset, backbone, engine and recipe, averaged over folds; with the number and names of
    changes."""
    a = results.ablation
    a = a[a["stage"].isin([stage, ""])] if (a["stage"] == stage).any() else a
    keys = ["dataset", "backbone", "engine", "recipe"]
    first = a.drop_duplicates(keys).set_index(keys)
    frame = first[[*FACTORS, "run_engine"]].join(
        a.groupby(keys)[["auprc", "auroc", "ece", "ece_top_label", "brier"]].mean()).reset_index()
    default = _at(frame[frame["recipe"] == "default"], ["dataset", "backbone", "engine"])
    frame["changes"] = [_changes(row, default.get((row["dataset"], row["backbone"], row["engine"])))
                        for row in frame.to_dict("records")]
    return frame


def _changes(row, default):
    changed = [SWITCHES.get((f, row[f].lower()), f"{f} {row[f] or 'as the engine has them'}") for f in FACTORS
               if default is not None and row[f].lower() != default[f].lower()]
    return changed + ([f"run under {row['run_engine']}"] if row["run_engine"] not in ("", row["engine"])
                      else [])


def ablation(results, *, stage="converted"):
    """The smallest change of recipe that turns a sound model into a collapsed one, per dataset, backbone
    and engine.

    Columns: dataset, backbone, engine, recipe, changes, n_changes, auprc_before, auprc, ece_before, ece,
    ece_top_label_before, ece_top_label, tried. Collapsed: AUPRC lower, or top-label ECE higher, by
    `COLLAPSE` than under the default recipe. Of several recipes with equally few changes the one that costs
    most AUPRC counts.
    """
    frame, rows = recipe_means(results, stage), []
    for key, group in frame.groupby(["dataset", "backbone", "engine"], sort=False):
        base = group[group["recipe"] == "default"]
        others = group[group["recipe"] != "default"]
        row = {**dict(zip(["dataset", "backbone", "engine"], key)), "tried": len(others)}
        if len(base):
            base = base.iloc[0]
            row |= {f"{m}_before": base[m] for m in ("auprc", "ece", "ece_top_label")}
            fell = others[(base["auprc"] - others["auprc"] >= COLLAPSE)
                          | (others["ece_top_label"] - base["ece_top_label"] >= COLLAPSE)]
            fell = fell.assign(n_changes=fell["changes"].map(len)).sort_values(["n_changes", "auprc"])
            if len(fell):
                row |= {m: fell.iloc[0][m] for m in ("recipe", "n_changes", "auprc", "ece", "ece_top_label")}
                row["changes"] = ", ".join(fell.iloc[0]["changes"])
            else:
                row |= {"recipe": "none", "changes": f"none of {len(others)} recipes collapses it"}
        else:
            row |= {"recipe": "", "changes": "the default recipe is missing"}
        rows.append(row)
    columns = ["dataset", "backbone", "engine", "recipe", "changes", "n_changes", "auprc_before", "auprc",
               "ece_before",
               "ece", "ece_top_label_before", "ece_top_label", "tried"]
    return _caption(pd.DataFrame(rows, columns=columns),
                    "The smallest change of recipe that makes PTQ collapse",
                    f"Collapsed: {COLLAPSE:.2f} less AUPRC, or {COLLAPSE:.2f} more top-label ECE, than the "
                    "default recipe gives.",
                    formats={None: "{:.3f}", "n_changes": "{:.0f}", "tried": "{:.0f}"})


def ablation_means(results, published=None, *, stage="converted"):
    """Can the paper's Table 1 averages be produced by a recipe? ECE and Brier, mean over backbones, per
    recipe.

    Columns: dataset, engine, recipe, n_backbones, ece, brier, paper_ece, paper_brier, distance (of the two
    from the paper's, Euclidean); nearest first within dataset and engine.
    """
    published = published or paper_results()
    frame = recipe_means(results, stage)
    mean = frame.groupby(["dataset", "engine", "recipe"], sort=False).agg(
        n_backbones=("backbone", "nunique"), ece=("ece", "mean"), brier=("brier", "mean")).reset_index()
    for metric in ("ece", "brier"):
        paper = _at(means(published, metric, stage="fake-quant"), ["dataset", "regime"])
        mean[f"paper_{metric}"] = [paper.get((counterpart(d), f"ptq-{e}"), {}).get("value", math.nan)
                                   for d, e in zip(mean["dataset"], mean["engine"])]
    mean["distance"] = np.hypot(mean["ece"] - mean["paper_ece"], mean["brier"] - mean["paper_brier"])
    mean = mean.sort_values(["dataset", "engine", "distance"]).reset_index(drop=True)
    return _caption(mean, "Recipes beside the paper's INT8-PTQ averages, nearest first",
                    formats={None: "{:.4f}", "n_backbones": "{:.0f}"})


UNTREATED, UNQUANTIZED = "none", "fp32"  # the rows of remedies.csv that the others are held against
GAP = 0.002  # a PTQ - FP32 gap smaller than this is too small to speak of closing it


def remedies(results):
    """Share of the PTQ to FP32 gap that each remedy closes, and what it costs in latency, one row per cell
    and remedy.

    Columns: dataset, backbone, regime, remedy, then for auprc, ece, ece_top_label, brier the value and
    `<metric>_closed` (1: as good as FP32; below 0: worse than PTQ; missing where PTQ is within `GAP` of
    FP32), and `slowdown` (p50 over untreated PTQ's).
    """
    metrics = ["auprc", "ece", "ece_top_label", "brier"]
    frame = results.remedies.groupby([*CELL, "remedy"], sort=False)[[*metrics, "p50_ms"]].mean().reset_index()
    untreated = _at(frame[frame["remedy"] == UNTREATED], CELL)
    columns = [*CELL, "remedy", *(c for m in metrics for c in (m, f"{m}_closed")), "slowdown"]
    goals, rows = _at(frame[frame["remedy"] == UNQUANTIZED], CELL), []
    for row in frame[~frame["remedy"].isin([UNTREATED, UNQUANTIZED])].to_dict("records"):
        before, goal = (side.get(tuple(row[c] for c in CELL), {}) for side in (untreated, goals))
        out = {c: row[c] for c in [*CELL, "remedy", *metrics]}
        for m in metrics:
            gap = goal.get(m, math.nan) - before.get(m, math.nan)
            out[f"{m}_closed"] = (row[m] - before.get(m, math.nan)) / gap if abs(gap) >= GAP else math.nan
        out["slowdown"] = row["p50_ms"] / before.get("p50_ms", math.nan)
        rows.append(out)
    percent = {f"{m}_closed": "{:.0%}" for m in metrics}
    return _caption(pd.DataFrame(rows, columns=columns),
                    "Remedies without retraining: share of the PTQ to FP32 gap closed",
                    f"No share is given where PTQ lies within {GAP} of FP32.",
                    formats={None: "{:.4f}", **percent, "slowdown": "{:.2f}×"})


def silent(results, *, stage="converted"):
    """What crosses a decision threshold fixed on the FP32 model: one row per cell and class, worst
    sensitivity first.

    Columns: dataset, backbone, regime, class, n, threshold, sensitivity_reference, sensitivity,
    sensitivity_change, specificity_change, prevalence_change, crossed_up, crossed_down.
    """
    s = results.silent[results.silent["stage"].isin(["float", stage])]
    counts = ["crossed_up", "crossed_down", "n"]
    rates = ["threshold", *(f"{r}{e}" for r in ("sensitivity", "specificity", "prevalence")
                            for e in ("_reference", ""))]
    frame = s.groupby([*CELL, "class"], sort=False).agg(dict.fromkeys(rates, "mean")
                                                        | dict.fromkeys(counts, "sum"))
    frame = frame.reset_index()
    for rate in ("sensitivity", "specificity", "prevalence"):
        frame[f"{rate}_change"] = frame[rate] - frame[f"{rate}_reference"]
    columns = [*CELL, "class", "n", "threshold", "sensitivity_reference", "sensitivity", "sensitivity_change",
               "specificity_change", "prevalence_change", "crossed_up", "crossed_down"]
    frame = frame[columns].sort_values("sensitivity_change", kind="stable").reset_index(drop=True)
    return _caption(frame, "Silent failures: decisions at a threshold fixed on the FP32 model",
                    "Means over folds; counts are sums over folds.",
                    formats={None: "{:.3f}", **dict.fromkeys(counts, "{:.0f}")})


def flips(results):
    """Images whose predicted class changes between two regimes, summed over folds, the most first."""
    counts = ["flipped", "flipped_to_right", "flipped_to_wrong", "n"]
    frame = results.flips.groupby(["dataset", "backbone", "regime_a", "regime_b"],
                                  sort=False)[counts].sum().reset_index()
    frame["share"] = frame["flipped"] / frame["n"]
    frame = frame.sort_values("share", ascending=False, kind="stable").reset_index(drop=True)
    return _caption(frame, "Label flips between regimes", formats={None: "{:.0f}", "share": "{:.1%}"})


def leak(results, metric="auroc", *, stage="converted"):
    """What images that stand on both sides of the split do to a metric: one row per cell.

    Columns: dataset, backbone, regime, stage, all, without_identical, without_twins, effect (all - without
    twins).
    """
    frame = results.leak[(results.leak["metric"] == metric) & results.leak["stage"].isin(["float", stage])]
    wide = frame.pivot_table(index=[*CELL, "stage"], columns="subset", values="value", sort=False)
    wide = wide.reindex(columns=["all", "without-identical", "without-twins"]).reset_index()
    wide.columns = [*CELL, "stage", "all", "without_identical", "without_twins"]
    wide["effect"] = wide["all"] - wide["without_twins"]
    return _caption(wide, f"The leak between training and test images, and {title(metric)} without it",
                    formats={None: "{:.4f}", "effect": "{:+.4f}"})


def qat_control(results, metric="auprc", *, engine="fbgemm", stage="converted"):
    """What quantization-aware training gives that training on in FP32 does not: one row per dataset and
    backbone.

    Columns: dataset, backbone, fp32, continued, qat, training_on (continued - fp32), awareness (qat -
    continued).
    """
    value = {k: r["value"] for k, r in _at(scores(results, metric, stage=stage), CELL).items()}
    rows = [{"dataset": d, "backbone": b,
             **{name: value.get((d, b, regime), math.nan) for name, regime in
                (("fp32", "fp32"), ("continued", CONTROL), ("qat", f"qat-{engine}"))}}
            for d in results.datasets for b in results.backbones]
    frame = pd.DataFrame(rows, columns=["dataset", "backbone", "fp32", "continued", "qat"])
    frame["training_on"] = frame["continued"] - frame["fp32"]
    frame["awareness"] = frame["qat"] - frame["continued"]
    return _caption(frame, f"QAT ({engine}) against FP32 trained for as long, {title(metric)}",
                    formats={None: "{:.4f}", "training_on": "{:+.4f}", "awareness": "{:+.4f}"})


def peers(results, *, batch_size=1):
    """Other runtimes on the same checkpoints and images; `pareto` marks rows that none beats in both p50
    and ECE."""
    frame = results.peers[results.peers["batch_size"].isin([batch_size])].reset_index(drop=True)
    best = pd.Series(False, index=frame.index)
    for _, group in frame.groupby(["dataset", "backbone"]):
        for k, row in group.iterrows():
            beaten = (group["p50_ms"] <= row["p50_ms"]) & (group["ece"] <= row["ece"]) & (
                (group["p50_ms"] < row["p50_ms"]) | (group["ece"] < row["ece"]))
            best[k] = not beaten.any() and not math.isnan(row["p50_ms"])
    frame = frame.assign(pareto=best).drop(columns="batch_size")
    return _caption(frame, f"The same models in other INT8 runtimes, batch {batch_size}",
                    "Pareto: no other row of the model is as fast and as well calibrated, and better in one.",
                    formats={None: "{:.2f}", **dict.fromkeys(("auroc", "auprc", "ece", "ece_top_label",
                                                              "brier"), "{:.4f}")})


def coverage(results):
    """What became of every cell: rows (dataset, backbone), a column per regime, entries as in
    `Results.status`."""
    frame = results.status.pivot(index=["dataset", "backbone"], columns="regime", values="status")
    rows = pd.MultiIndex.from_product([results.datasets, results.backbones], names=["dataset", "backbone"])
    frame = frame.reindex(index=rows, columns=results.regimes)
    return _caption(frame, "What became of every cell")


def worst_layers(results, dataset, backbone, regime, n=3):
    """The `n` layers with the lowest signal-to-quantization-noise ratio of a cell, worst first (columns of
    layers.csv)."""
    frame = results.layers
    frame = frame[(frame["dataset"] == dataset) & (frame["backbone"] == backbone)
                  & (frame["regime"] == regime)]
    frame = frame.groupby(["layer", "operator"], sort=False)[["sqnr_db", "saturation", "weight_range_ratio",
                                                               "kernel_sqnr_db", "kernel_max_steps"]].mean()
    frame = frame.nsmallest(n, "sqnr_db").reset_index()
    return _caption(frame, f"Worst layers of {title(backbone)}, {title(regime)}, {title(dataset)}",
                    formats={None: "{:.1f}", "saturation": "{:.2%}", "weight_range_ratio": "{:.1f}×"})


# --- HTML -----------------------------------------------------------------------------------------

STYLE = """<style>
.medq-scroll {overflow-x: auto}
.medq-scroll table {border-collapse: collapse; font-size: .9em; margin: 0}
.medq-scroll th, .medq-scroll td {padding: .3em .6em; text-align: right; vertical-align: top;
  border-bottom: 1px solid rgba(128, 128, 128, .4); white-space: nowrap}
.medq-scroll th {white-space: normal; vertical-align: bottom}
.medq-scroll td.text {text-align: left; white-space: normal}
.medq-scroll td span {display: block; font-size: .85em}
.medq-scroll td.outside span.paper {text-decoration: underline wavy 1px; text-underline-offset: .2em}
.medq-notes {font-size: .85em; margin-top: .4em}
</style>"""
STATUS = {"done": "✓ done", "unsupported": "∅ unsupported", "failed": "✗ failed", "missing": "· missing"}


def show(frame, *, caption=False):
    """Any table of this module as HTML text, in one scrolling block with its notes.

    Beside the paper's: ours, its interval in parentheses, the paper's value below, `≠` where that lies
    outside our interval, bold for the best of a row (ours and the paper's apart), and lettered notes for
    what is missing, unsupported or computed by kernels that disagree with their simulation.
    """
    from html import escape

    notes = _Notes(frame.attrs.get("interval", "our 95 % interval"))
    wide = isinstance(frame.columns, pd.MultiIndex) and set(FIELDS) <= set(frame.columns.get_level_values(-1))
    cells, classes = _beside_paper(frame, notes) if wide else _flat(frame)
    styler = cells.style.hide(axis="index").set_td_classes(classes).set_table_attributes('class="medq-table"')
    styler.uuid, styler.cell_ids = "medq", False
    if caption:
        styler = styler.set_caption(escape(frame.attrs.get("caption", "")))
    label = escape(frame.attrs.get("caption", "Table"), quote=True)
    lines = [*frame.attrs.get("notes", []), *notes.lines()]
    below = "".join(f"<div>{escape(line)}</div>" for line in lines)
    return (f'{STYLE}\n<div class="medq-scroll" role="region" tabindex="0" aria-label="{label}">'
            f'{styler.to_html(doctype_html=False)}</div>\n<div class="medq-notes">{below}</div>')


class _Notes:
    """Lettered notes, one letter per distinct sentence, and the marks that were used."""

    def __init__(self, interval):
        self.sentences, self.marks, self.interval = {}, set(), interval

    def letter(self, sentence):
        return self.sentences.setdefault(sentence, chr(ord("a") + len(self.sentences) % 26))

    def lines(self):
        said = {"≠": f"≠ the paper's value lies outside {self.interval}.",
                "bold": "Bold: the best of the row."}
        return [said[m] for m in said if m in self.marks] + [f"{k}: {s}." for s, k in self.sentences.items()]


def _beside_paper(frame, notes):
    """HTML of each cell (a DataFrame of text) and its CSS classes, from columns with FIELDS below them."""
    attrs, names = frame.attrs, list(dict.fromkeys(frame.columns.get_level_values(0)))
    formats, labels = attrs.get("formats", {}), attrs.get("labels", {})
    among = [n for n in attrs.get("best_among", names) if n in names]
    index = frame.index.to_frame(index=False)
    cells, classes = [], []
    for (_, row), keys in zip(frame.iterrows(), index.to_dict("records")):
        best = {f: _best(row, among, f) if attrs.get("best") == "min" else None for f in ("ours", "paper")}
        text = {_head(k): _name(k, v, keys) for k, v in keys.items()}
        style = dict.fromkeys(text, "text")
        for name in names:
            form = formats.get(name, formats.get(None, "{:.4g}"))
            compared = name in attrs.get("compared", names)
            bold = {f for f in best if name in among and best[f] is not None and row[name][f] == best[f]}
            head = labels.get(name, title(name))
            text[head], style[head] = _cell(row[name], form, compared, bold, notes)
        cells.append(text)
        classes.append(style)
    columns = [_head(k) for k in index.columns] + [labels.get(n, title(n)) for n in names]
    return pd.DataFrame(cells, columns=columns), pd.DataFrame(classes, columns=columns)


def _best(row, among, field):
    values = [row[n][field] for n in among if not _absent(row[n][field])]
    return min(values) if values else None


def _absent(value):
    return value is None or isinstance(value, float) and math.isnan(value)


def _cell(entry, form, compared, bold, notes):
    from html import escape

    state = entry["state"] if isinstance(entry["state"], str) else ""
    mark = f"<sup>{notes.letter(state)}</sup>" if state else ""
    doubt = "⚠ " if DISAGREES in state else ""
    if _absent(entry["ours"]):
        ours = escape(state.split(":")[0]) or "missing"
    else:
        ours = form.format(entry["ours"])
        ours = f"<strong>{ours}</strong>" if "ours" in bold else ours
    bounds = [form.format(entry[f]) for f in ("low", "high") if not _absent(entry[f])]
    interval = f"<span>({'–'.join(bounds)})</span>" if len(bounds) == 2 else ""
    outside = compared and is_outside(entry)
    paper = ""
    if not _absent(entry["paper"]):
        value = form.format(entry["paper"])
        value = f"<strong>{value}</strong>" if "paper" in bold else value
        paper = f'<span class="paper">paper {value}{" ≠" if outside else ""}</span>'
    notes.marks |= ({"≠"} if outside else set()) | ({"bold"} if bold else set())
    return f"{doubt}{ours}{mark}{interval}{paper}", "outside" if outside else "number"


def is_outside(entry):
    """Whether the paper's value lies outside our interval; False where either is missing."""
    if any(_absent(entry[f]) for f in ("low", "high", "paper")):
        return False
    return not entry["low"] <= entry["paper"] <= entry["high"]


TERMS = {"auroc": "ROC-AUC", "p50 ms": "p50 (ms)", "p99 ms": "p99 (ms)"}


def _head(name):
    """A column's name as it is printed."""
    words = str(name).replace("_", " ")
    for short in ("auroc", "auprc", "ece", "fp32", "ptq", "qat", "p50 ms", "p99 ms"):
        words = re.sub(rf"\b{short}\b", TERMS.get(short, short.upper()), words)
    return words[:1].upper() + words[1:]


def _name(kind, value, row):
    """A key as it is printed, escaped: dataset, class, backbone, regime, metric by their titles."""
    from html import escape

    if kind == "class":
        value = class_title(row.get("dataset", ""), value)
    elif kind == "engine":
        value = value.upper()
    elif kind == "family":
        value = {"cnn": "CNN", "transformer": "Transformer"}.get(value, value)
    elif kind in ("dataset", "backbone", "regime", "metric", "regime_a", "regime_b"):
        value = title(value)
    return escape(str(value))


def _flat(frame):
    """HTML of each cell and its CSS classes, of a table without the paper's numbers."""
    from html import escape

    formats = frame.attrs.get("formats", {})
    index = frame.index.names != [None]
    plain = frame.reset_index() if index else frame.reset_index(drop=True)
    cells = pd.DataFrame(index=plain.index)
    classes = pd.DataFrame(index=plain.index)
    for column in plain:
        values, head = plain[column], title(column) if column in REGIMES else _head(column)
        if pd.api.types.is_bool_dtype(values):
            cells[head] = values.map({True: "✓", False: ""})
        elif pd.api.types.is_numeric_dtype(values):
            form = formats.get(column, formats.get(None, "{:.4g}"))
            cells[head] = ["–" if _absent(v) else form.format(v) for v in values.astype(float)]
        else:
            cells[head] = [STATUS.get(v) or _name(column, v, r) if isinstance(v, str) else escape(str(v))
                           for v, r in zip(values, plain.to_dict("records"))]
            classes[head] = "text"
            continue
        classes[head] = "number"
    return cells, classes


# --- what lies behind tables and figures ----------------------------------------------------------

def regimes_data(results, metric, published=None, *, stage="converted"):
    """Figures 1 and 5: dataset, backbone (or `mean`), regime, value, low, high, between_std, paper, state."""
    cells = scores(results, metric, stage=stage)
    mean = means(results, metric, stage=stage)
    paper = _at(means(published or paper_results(), metric, stage="fake-quant"), ["dataset", "regime"])
    mean = mean.assign(backbone="mean", paper=[paper.get((counterpart(d), r), {}).get("value", math.nan)
                                               for d, r in zip(mean["dataset"], mean["regime"])],
                       state=[mean_state(results, d, r, b, stage) for d, r, b in
                              zip(mean["dataset"], mean["regime"], mean["backbones"])])
    cells = cells.assign(state=[cell_state(results, *key, stage) for key in zip(*(cells[c] for c in CELL))])
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
        parts.append(rows.assign(pair=" vs ".join("FP32" if k == "fp32" else f"INT8-{k.upper()}"
                                                  for k in (first, second))))
    return pd.concat(parts, ignore_index=True)


def calibration_data(results, *, regime="ptq-fbgemm"):
    """Figure 4: dataset, backbone, n_calibration, mean, std, n, spread (over `folds` or over `subsets` of
    one fold)."""
    c = results.calibration_size
    c = c[c["regime"] == regime]
    keys = ["dataset", "backbone", "n_calibration"]
    several = c.groupby("dataset")["fold"].nunique().gt(1)
    per_fold = c.groupby([*keys, "fold"], sort=False)["auprc"].mean().reset_index()
    parts = [(per_fold if several.get(d, False) else c)[lambda f, d=d: f["dataset"] == d].assign(
        spread="folds" if several.get(d, False) else "subsets") for d in c["dataset"].unique()]
    if not parts:
        return pd.DataFrame(columns=[*keys, "mean", "std", "n", "spread"])
    grouped = pd.concat(parts).groupby([*keys, "spread"], sort=False)["auprc"]
    return grouped.agg(mean="mean", std="std", n="size").reset_index()[[*keys, "mean", "std", "n", "spread"]]


def latency_data(results, published=None, *, engine="fbgemm", batch_size=1):
    """Figure 6: backbone, regime (fp32 or ptq), p50_ms, p50_low, p50_high, p99_ms, paper_p50_ms."""
    columns = ["backbone", "regime", "p50_ms", "p50_low", "p50_high", "p99_ms"]
    ours, paper = (timings(r, batch_size)[columns] for r in (results, published or paper_results()))
    ours = ours[ours["regime"].isin(["fp32", f"ptq-{engine}"])]
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
    "table1": table1_data, "table2": table2_data, "table3": table3_data, "table4": table4_data,
    "figure1": lambda r, p: regimes_data(r, "auroc", p), "figure2": lambda r, p: tradeoff_data(r),
    "figure3": lambda r, p: forest_data(r), "figure4": lambda r, p: calibration_data(r),
    "figure5": lambda r, p: regimes_data(r, "auprc", p), "figure6": latency_data,
    "figure7": lambda r, p: reliability_data(r), "engine_check": lambda r, p: engine_check(r),
    "ablation": lambda r, p: r.ablation, "remedies": lambda r, p: remedies(r),
    "layers": lambda r, p: r.layers,
    "silent": lambda r, p: silent(r), "flips": lambda r, p: flips(r), "leak": lambda r, p: r.leak,
    "qat_control": lambda r, p: qat_control(r), "peers": lambda r, p: r.peers,
    "speedups": lambda r, p: speedups(r),
    "coverage": lambda r, p: r.status,
}


def data(name, results, published=None):
    """The tidy numbers behind a table or figure (names in `DATA`), for download; `UserError` for an unknown
    name."""
    return DATA[one_of("table or figure", name, DATA)](results, published)
